"""The command lines: parsing and refusing."""
