"""What a transformer is: families, heads, tokens, hooks, blocks one by one, checkpoints, the hub."""
