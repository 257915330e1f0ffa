"""What inference engines make of a checkpoint."""
