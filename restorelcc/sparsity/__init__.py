"""What zeros are: patterns, removable parts, and models pruned while they stream from disk."""
