"""An inspection as one HTML file."""
