"""Metrics, protocols, and what is scored."""
