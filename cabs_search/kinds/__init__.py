"""Kinds of task: columns, encoding, head, scoring and metrics, one file a kind."""
