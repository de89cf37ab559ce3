"""Looking at the matrix: what the contrastive loss sees, in numbers and as a page."""
