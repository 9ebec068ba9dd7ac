"""Combine rules: how pruned vectors add up."""
