"""The quickstart: real text from PyPI packages, and experts tuned on it."""
