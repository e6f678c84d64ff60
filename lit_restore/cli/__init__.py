"""Commands: argument parsing, one-line errors, exit codes."""
