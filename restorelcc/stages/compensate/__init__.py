"""Training of the paper's compensation for the best-ranked heads."""
