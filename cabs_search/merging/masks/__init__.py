"""Mask rules: which weights of a task vector are kept."""
