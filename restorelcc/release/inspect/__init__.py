"""The contents of a checkpoint folder."""
