"""Fault injection: fitters that misbehave on purpose, and a seeded killer (`make chaos`)."""
