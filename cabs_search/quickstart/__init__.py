"""Real text from PyPI packages, and experts made from it."""
