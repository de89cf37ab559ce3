"""Images found by words, or by images: an index of embeddings, the search in it, and its page in the browser."""
