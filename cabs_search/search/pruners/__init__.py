"""Rules that stop a candidate before all its items are scored: one file each, one line each in the
registry.
"""
