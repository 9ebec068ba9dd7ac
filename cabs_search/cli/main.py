"""The command line: parse, call, print. Results go to stdout, progress and logs to stderr.

Exit status: 0; 1 where the work failed; 2 where the user's input is wrong, with one line that says
what to change.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from typing import NoReturn

from cabs_search.cli.commands import PROGRAM
from cabs_search.cli.parser import parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # λ on a terminal that has none
    given = sys.argv[1:] if arguments is None else arguments
    options = parser(with_settings="merge" in given).parse_args(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="cabs_search")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        options.act(options)
    except ValueError as error:
        return _fail(_named(options, error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(RuntimeError("interrupted; the same command goes on where it stopped"), 130)
    except Exception as error:
        return _fail(error, 1)
    return 0


FIELDS = re.compile(r"(space|tasks|experts|baselines|search|base|device|dtype|seed)\b[^ ]*:")


def _named(options: argparse.Namespace, error: ValueError) -> ValueError:
    """An error in a spec's field, found after the spec was read, with the spec's name."""
    spec = getattr(options, "spec", None)
    return ValueError(f"{spec}: {error}") if spec and FIELDS.match(str(error)) else error


def _fail(error: BaseException, status: int) -> int:
    if os.environ.get("CABS_SEARCH_DEBUG"):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    expected = isinstance(error, (ValueError, RuntimeError, OSError))
    print(f"{PROGRAM}: {text if expected else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    if not expected:
        print("set CABS_SEARCH_DEBUG=1 to see where it happened", file=sys.stderr)
    return status


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())
