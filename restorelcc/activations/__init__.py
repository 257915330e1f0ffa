"""Head outputs: how they are observed, packed into rows and kept."""
