"""Metrics: a number from predictions and labels."""
