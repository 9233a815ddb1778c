"""The command line, one file a command. Read main first."""
