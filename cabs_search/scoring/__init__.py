"""A model on items."""
