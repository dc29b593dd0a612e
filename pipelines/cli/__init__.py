"""The command line. Each file holds the arguments of a group of commands."""
