"""A restored model as a stock checkpoint, and a compensation put into one and taken out again."""
