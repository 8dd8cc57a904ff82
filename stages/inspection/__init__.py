"""What label files and converted datasets hold: statistics, defects, judgements and their pages."""
