"""What a model can do: tasks, perplexity, continuations, cost, and the statistics over items."""
