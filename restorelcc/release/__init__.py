"""Work on finished checkpoints: export, verify, inspect, slice, and check how engines treat them."""
