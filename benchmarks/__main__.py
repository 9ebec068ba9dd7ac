"""``python -m benchmarks``: measure, print one table, keep it in bench.json."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

from benchmarks.figures import PARTS, Ledger


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for; 1 where one of them fails."""
    parser = argparse.ArgumentParser(
        prog="make bench", description="Speed and memory against rivals and the machine."
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure")
    parser.add_argument(
        "--json", type=Path, default=Path("bench.json"), help="where figures are kept"
    )
    parser.add_argument(
        "--fresh", action="store_true", help="measure anew what is remembered of slow rivals"
    )
    parser.add_argument(
        "--docs", action="store_true", help="measure nothing: write docs/ from what is kept"
    )
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    ledger, failed = Ledger(chosen.json, fresh=chosen.fresh), False
    if chosen.docs:
        importlib.import_module("benchmarks.docs").write(ledger)
        return 0
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for part in chosen.only:
        ledger.begin(part)
        try:
            importlib.import_module(f"benchmarks.{part}").measure(ledger)
        except Exception:
            failed = True
            ledger.say(f"  {part} failed")
            traceback.print_exc()
    ledger.write()
    print(ledger.as_text())
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
