"""What zeros are: patterns, removable parts, and the walk through a model block by block."""
