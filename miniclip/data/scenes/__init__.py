"""The built-in captioned scenes."""
