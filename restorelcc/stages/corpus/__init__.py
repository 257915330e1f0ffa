"""Everything that later stages read as text: calibration, pairs, contrast tuples, held-out texts, tasks."""
