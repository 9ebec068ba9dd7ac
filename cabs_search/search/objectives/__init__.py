"""Objectives of a search: one file each, one line each in the registry."""
