"""Captioned and labelled images from anywhere, as sources, batches and streams."""
