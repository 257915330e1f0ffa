"""Checkpoints without their zeros: a bit for every weight and the survivors, on disk, in memory and in the product."""
