"""Head outputs, stored as Parquet."""
