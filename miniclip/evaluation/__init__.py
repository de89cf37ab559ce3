"""Evaluation: zero-shot classification by prompts, retrieval with several captions an image, and their reports."""
