"""Proof that a restored checkpoint is what it says."""
