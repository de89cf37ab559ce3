"""Images decoded once, in files that are mapped into memory."""
