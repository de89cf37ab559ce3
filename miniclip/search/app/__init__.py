"""Search in the browser: a server for this machine alone, and the one page that it shows."""
