"""What a transformer is: families, heads, tokens, checkpoints, the hub."""
