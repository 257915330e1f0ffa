"""Head outputs of the dense and the pruned model at the last tokens of questions and responses."""
