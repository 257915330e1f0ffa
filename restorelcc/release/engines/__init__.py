"""How inference engines treat a checkpoint."""
