"""Every file operation that must survive a crash or a stranger."""
