"""Pure functions of embeddings and scores: retrieval, classification, geometry, and their bootstrap intervals."""
