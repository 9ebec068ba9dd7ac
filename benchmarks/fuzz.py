"""``make fuzz``: valid inputs changed at random, what commands make of them, and a tally.

Each kind of input has a process of its own, which may take 1 GiB of memory more than it has after
its first command; a case that takes 10 seconds ends it. Cases that break a rule are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

SHARES = {
    "spec": 5,
    "header": 5,
    "index": 3,
    "config": 1,
    "adapter": 3,
    "notes": 1,
    "record": 2,
    "export": 1,
    "sample": 1,
    "vectors": 1,
    "recipe": 2,
}
"""Parts of all examples."""
MOST_SECONDS = 10
MORE_MEMORY = 1 << 30


class TooLong(BaseException):
    """A case took too long."""


def end(*_: Any) -> None:
    raise TooLong


def child(target: str, examples: int, seed: int, root: Path) -> None:
    """Run one kind of input; print a line of JSON with what happened."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as with_seed

    from tests.conftest import EXPERTS, make_base, make_expert, write_rows
    from tests.hostile.changes import TARGETS
    from tests.support.hostile import House

    os.environ["CABS_SEARCH_CACHE"] = str(root / "cache")
    pico = root / "pico"
    base = make_base(pico / "base")
    for number, (name, labels) in enumerate(zip(EXPERTS, (2, 3, 2), strict=True), 1):
        make_expert(pico / name, base, number, labels)
        write_rows(pico / f"{name}.csv", number, labels, 120, pair=name == "pair")
    house = House(root / "house", pico)
    for warm in (
        lambda: house.plan(house.spec(house.values)),
        lambda: house.merge(house.fresh("model")),
        lambda: house.report(house.fresh("study")),
    ):
        assert not (verdict := warm()).wrong, verdict
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_MEMORY, size + MORE_MEMORY))
    signal.signal(signal.SIGALRM, end)
    outcomes: Counter[str] = Counter()
    wrong: dict[str, list[str]] = {}
    slowest = 0.0

    @with_seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(TARGETS[target](house))
    def run(act: Any) -> None:
        nonlocal slowest
        began = time.monotonic()
        signal.alarm(MOST_SECONDS)
        try:
            verdict = act()
            found, lines = verdict.wrong or f"status {verdict.status}", verdict.lines
        except TooLong:
            found, lines = "too long", traceback.format_exc().splitlines()[-12:]
        except MemoryError:
            found, lines = "too much memory", traceback.format_exc().splitlines()[-12:]
        except Exception:
            found, lines = "traceback", traceback.format_exc().splitlines()[-12:]
        finally:
            signal.alarm(0)
        slowest = max(slowest, time.monotonic() - began)
        outcomes[found] += 1
        if found == "status 1":  # once more, to see where
            os.environ["CABS_SEARCH_DEBUG"] = "1"
            try:
                act()
            except Exception:
                lines = [*traceback.format_exc().splitlines()[-14:], *lines]
            del os.environ["CABS_SEARCH_DEBUG"]
        if found not in ("status 0", "status 2"):
            wrong.setdefault(f"{found}: {lines[-1] if lines else ''}"[:300], lines)

    run()
    more = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024
    print(json.dumps({"outcomes": outcomes, "wrong": wrong, "slowest": slowest, "more": more}))


def main() -> int:
    """Run all kinds, one after another, and print the tally."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--examples", type=int, default=25_000, help="in all (default 25,000)")
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--only", choices=tuple(SHARES), help="one kind of input")
    arguments.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        child(options.only, options.examples, options.seed, options.child)
        return 0
    chosen = {options.only: 1} if options.only else SHARES
    total, failed = 0, False
    print("input     cases   fine refused wrong  slowest   memory")
    for target, share in chosen.items():
        count = -(-options.examples * share // sum(chosen.values()))
        with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
            command = [sys.executable, "-m", "benchmarks.fuzz", "--child", root, "--only", target]
            command += ["--examples", str(count), "--seed", str(options.seed)]
            environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "HF_HUB_OFFLINE": "1"}
            ran = subprocess.run(command, capture_output=True, env=environment, text=True)
        if ran.returncode:
            failed = True
            print(f"{target:<8} ended with {ran.returncode}: {ran.stderr[-2000:]}")
            continue
        found = json.loads(ran.stdout.splitlines()[-1])
        outcomes = found["outcomes"]
        cases, fine, refused = (
            sum(outcomes.values()),
            outcomes.get("status 0", 0),
            outcomes.get("status 2", 0),
        )
        total, failed = total + cases, failed or cases > fine + refused
        print(
            f"{target:<8} {cases:>6} {fine:>6} {refused:>7} {cases - fine - refused:>5}"
            f" {found['slowest']:>6.1f} s {found['more']:>4.0f} MiB",
            flush=True,
        )
        for what, lines in found["wrong"].items():
            print(f"    {what}")
            print("\n".join(f"        {line}" for line in lines[:-1]))
    print(f"{total:,} cases; {'some broke a rule' if failed else 'none broke a rule'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
