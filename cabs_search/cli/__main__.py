"""``python -m cabs_search.cli`` is the command ``cabs-search``."""

from cabs_search.cli.main import entry

entry()
