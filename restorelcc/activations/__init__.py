"""Head outputs: packed into rows, stored as Parquet."""
