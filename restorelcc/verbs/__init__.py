"""Verbs beside the stages, one file each: a function `add(app)` that registers it. Same layer as the command line."""
