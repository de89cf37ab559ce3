"""Runs side by side: a grid of configurations, what each came to, and what the difference between them is worth."""
