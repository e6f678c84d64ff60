"""Load, convert and export network weights."""
