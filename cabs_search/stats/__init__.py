"""Tests and intervals, of runs and of items: numpy and scipy only."""
