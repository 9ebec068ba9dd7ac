"""Optuna samplers by name: one file each, one line each in the registry."""
