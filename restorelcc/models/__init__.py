"""What a transformer is: families, heads, tokens, packed rows, hooks, blocks one by one, checkpoints, the hub."""
