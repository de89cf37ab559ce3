"""Looking at the matrix: what the contrastive loss sees, in numbers, as a picture and as a page."""
