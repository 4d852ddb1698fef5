"""The command line: commands, their flags, and recipes of several stages."""
