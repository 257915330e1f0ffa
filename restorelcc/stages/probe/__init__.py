"""Which heads matter: scores of every head, and their ranks."""
