"""Training of the few parameters that are added to a frozen model: the loop, its losses, data and state."""
