"""What the pipeline needs around its stages: locks, package versions, dvc.lock, remotes. A layer with the verbs."""
