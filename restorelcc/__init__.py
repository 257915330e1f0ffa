"""Give pruned language models their accuracy back, reproducibly (RestoreLCC, arXiv 2510.21834)."""

__version__ = "0.1.0"
