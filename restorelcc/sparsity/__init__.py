"""Zeros: patterns, removable parts, and models that are pruned while they stream from disk."""
