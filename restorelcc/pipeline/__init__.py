"""The stages as a whole: parameters, what is stale, plans, remotes, locks, versions."""
