"""The data plane: annotation files in, checked SKEL shards out."""
