"""What may hold images and texts: CSV, JSONL, Parquet, folders, tars, the Hub."""
