"""One YAML file a subset, installed as package data."""
