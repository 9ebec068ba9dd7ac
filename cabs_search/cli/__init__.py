"""The command line: options in, results to stdout, progress and errors to stderr."""

from cabs_search.cli.main import entry as entry
from cabs_search.cli.main import main as main
