"""Rows of data as tokenized items, divided into a search and a confirm split."""
