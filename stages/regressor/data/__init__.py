"""Pictures and labels as batches."""
