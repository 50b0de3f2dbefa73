"""Random cases of every operator against an independent oracle."""
