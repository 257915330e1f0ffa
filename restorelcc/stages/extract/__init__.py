"""The components that pruning lost: directions, singular values and loadings of every head."""
