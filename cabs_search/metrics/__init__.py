"""Metrics of tasks, from predictions and labels alone."""
