"""The command line: parse, call, print. Results go to stdout, progress and logs to stderr.

Exit status: 0; 1 if the work failed; 2 if the user's input is wrong, with one line that says what
to change.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from dataclasses import fields
from typing import Any, NoReturn

from cabs_search.cli.commands import PROGRAM
from cabs_search.cli.parser import parser
from cabs_search.common.signals import Terminated, terminated_as_interrupted


def entry() -> NoReturn:
    """Run the command line, and exit with its status."""
    sys.exit(main())


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may have no λ
    given = sys.argv[1:] if arguments is None else arguments
    options = parser(with_settings="merge" in given).parse_args(given)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="cabs_search")
    warnings.showwarning = _show_warning
    try:
        with terminated_as_interrupted():
            options.act(options)
    except ValueError as error:
        return _fail(_with_file(options, error), 2)
    except BrokenPipeError:
        # Python would complain of the closed pipe once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Terminated:
        return _fail(RuntimeError("terminated; the same command goes on where it stopped"), 143)
    except KeyboardInterrupt:
        return _fail(RuntimeError("interrupted; the same command goes on where it stopped"), 130)
    except Exception as error:
        return _fail(error, 1)
    return 0


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _with_file(options: argparse.Namespace, error: ValueError) -> ValueError:
    """Add the spec's name to an error in one of its fields that was found after it was read."""
    spec, field = getattr(options, "spec", None), re.match(r"(\w+)[^ ]*:", str(error))
    if spec is None or field is None:
        return error
    from cabs_search.spec.study import Spec

    is_field = field[1] in {own.name for own in fields(Spec)}
    return ValueError(f"{spec}: {error}") if is_field else error


def _fail(error: BaseException, status: int) -> int:
    """Print an error in one line and return the status; with CABS_SEARCH_DEBUG, raise it."""
    if os.environ.get("CABS_SEARCH_DEBUG"):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)  # nothing for a terminal
    expected = isinstance(error, (ValueError, RuntimeError, OSError))
    print(f"{PROGRAM}: {text if expected else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    if not expected:
        print("set CABS_SEARCH_DEBUG=1 to see where it happened", file=sys.stderr)
    return status
