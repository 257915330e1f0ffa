"""Every other way to recover a pruned model: biases, weights under the mask, adapters, reconstruction."""
