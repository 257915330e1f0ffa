"""The files outside the project that a model's entry names, laid out where DVC watches them."""
