"""Constants added inside a frozen model: the value, its file, its fold into biases."""
