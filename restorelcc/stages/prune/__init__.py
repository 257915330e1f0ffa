"""The pruners: scores, updates, and the sparse checkpoint they leave."""
