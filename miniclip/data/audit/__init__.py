"""Before training: what is in the data."""
