"""The command line: what each command does, how it ends, and what it prints."""
