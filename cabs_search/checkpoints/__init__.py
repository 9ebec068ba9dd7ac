"""Weights on disk: read lazily, written as a stream, aligned."""
