"""What makes committed files; not installed."""
