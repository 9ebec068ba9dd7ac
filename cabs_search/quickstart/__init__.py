"""The quickstart: real text from PyPI packages, and experts made from it."""
