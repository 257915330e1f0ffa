"""Work on finished checkpoints: export, verify, inspect, slice, pack, and check how engines treat them."""
