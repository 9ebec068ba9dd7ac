"""Kinds of task: columns, encoding, head, scoring."""
