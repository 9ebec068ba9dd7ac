"""Show that a change alters no result: run the same studies with two versions of the program and
compare them.

    python -m benchmarks.same_results --against REVISION [--quickstart]

Studies: every method on two-layer models, all five kinds of task, λ by group, and
(``--quickstart``) the quickstart.
Compared byte by byte: recipe keys, names and contents of cached vectors, items, scores, losses and
predictions of every item, and the printed leaderboards but for their lines of seconds. Candidates
are drawn at random, so that proposals do not depend on which worker is first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import EXPERTS, make_base, make_expert, pico_values, write_rows
from tests.support.standins import HEAD_KINDS, fields_of, write_data
from tests.support.standins import make_base as make_kinds_base
from tests.support.standins import make_expert as make_kinds_expert

ROOT = Path(__file__).parents[1]
RUN = "import sys; from cabs_search.cli import main; sys.exit(main(sys.argv[1:]))"
TABLES = ("items", "recipes", "blocks", "search", "study")


def pico_family(folder: Path) -> Path:
    """Make the base, its three experts and their rows that the specs below name."""
    base = make_base(folder / "base")
    for seed, (name, labels) in enumerate(zip(EXPERTS, (2, 3, 2), strict=True), 1):
        make_expert(folder / name, base, seed, labels)
        write_rows(folder / f"{name}.csv", seed, labels, 120, pair=name == "pair")
    return folder


def studies(folder: Path) -> dict[str, list[str]]:
    """Write specs and models; by a study's name the command that runs it."""
    pico = pico_family(folder / "pico")
    search = {"sampler": "random", "workers": 1}
    every = pico_values(pico, trials=4, confirm=1, **search)
    every["space"] |= {"order": [list(EXPERTS), list(EXPERTS[::-1])]}
    groups = pico_values(pico, trials=10, **search)
    groups["space"] |= {
        "method": ["cabs", "ties", "dare"],
        "density_shared": False,
        "density": [0.25, 0.5],
    }
    groups["space"]["lambda"] |= {"groups": {"embeddings": "embeddings", "rest": "."}}
    kinds = folder / "kinds"
    base = make_kinds_base(kinds / "base", "bert")
    for seed, kind in enumerate(HEAD_KINDS):
        make_kinds_expert(kinds / kind, base, "bert", kind, seed)
        write_data(kinds / f"{kind}.jsonl", kind, 50 + seed, 60)
    size = {"search": {"items": 20}, "confirm": {"items": 20}}
    of_kinds = {
        "name": "kinds",
        "base": str(base),
        "experts": {kind: str(kinds / kind) for kind in HEAD_KINDS},
        "tasks": {
            k: {"dataset": {"json": str(kinds / f"{k}.jsonl")}, **fields_of(k), **size}
            for k in HEAD_KINDS
        },
        "space": {"nm": ["2:8", "8:32"], "lambda": {"low": 0.5, "high": 2.0, "step": 0.1}},
        "baselines": {"task-arithmetic": {"lambda": [0.3, 0.6]}},
        "search": {"trials": 8, "confirm": 3, "block": 8, **search},
        "device": "cpu",
        "tracking": {"model": "never"},
    }
    commands = {}
    for name, values, command in (
        ("methods", every, ["compare", "SPEC", "--over", "method"]),
        ("groups", groups, ["run", "SPEC"]),
        ("kinds", of_kinds, ["run", "SPEC"]),
    ):
        spec = folder / f"{name}.yaml"
        spec.write_text(yaml.safe_dump(values, sort_keys=False))
        commands[name] = [str(spec) if word == "SPEC" else word for word in command]
    return commands


def quickstart(folder: Path) -> dict[str, list[str]]:
    """Write the quickstart's spec with a random sampler; its experts must be in the user's
    cache.
    """
    values = yaml.safe_load((ROOT / "search_spaces" / "quickstart.yaml").read_text())
    values["space"]["nm"] = ["3:32", "32:256"]
    values["search"] |= {"sampler": "random", "workers": 2}
    values["tracking"] = {"model": "never"}
    spec = folder / "quickstart.yaml"
    spec.write_text(yaml.safe_dump(values, sort_keys=False))
    return {"quickstart": ["run", str(spec)]}


def results(tree: Path, name: str, command: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run one study with the program in ``tree``; everything that must not differ, by what it
    is.
    """
    folder.mkdir(parents=True)
    own = {"PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    if name != "quickstart":
        own["CABS_SEARCH_CACHE"] = str(folder / "cache")
    call = [sys.executable, "-c", RUN, *command, "--output", str(folder / "out")]
    done = subprocess.run(
        call, cwd=folder, env=os.environ | own, capture_output=True, text=True, check=False
    )
    # a comparison's leaderboard is printed also if one of its rows could not run
    if done.returncode and not done.stdout:
        raise SystemExit(f"{tree}: {name} failed:\n{done.stderr}")
    found: dict[str, Any] = {"printed": _without_seconds(done.stdout, folder)}
    with closing(sqlite3.connect(folder / "out" / "outcomes" / "outcomes.sqlite")) as db:
        for table in TABLES:
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            kept = ", ".join(c for c in columns if not c.endswith("_seconds"))
            rows = db.execute(f"SELECT {kept} FROM {table} ORDER BY {kept}").fetchall()
            found[table] = [row for row in rows if row[0] != "id"]
    entries = sorted((folder / "cache").rglob("*.safetensors"))
    found["vectors"] = [
        (entry.name, hashlib.sha256(entry.read_bytes()).hexdigest()) for entry in entries
    ]
    return found


def _without_seconds(printed: str, folder: Path) -> str:
    lines = [line for line in printed.splitlines() if "of all workers together" not in line]
    return "\n".join(lines).replace(str(folder), "FOLDER")


@contextmanager
def checkout(revision: str) -> Iterator[Path]:
    """Another version of the program, checked out while it is needed."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "--detach", "--quiet", tree, revision], cwd=ROOT, check=True
        )
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The parts of two versions' results that differ."""
    return [part for part in before if before[part] != after[part]]


def digest(found: Mapping[str, Any]) -> str:
    """A short hash of results, to be written down."""
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def main() -> int:
    """Run the studies with both versions; 1 where a result differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against", required=True, metavar="REVISION", help="the version to compare with"
    )
    parser.add_argument(
        "--quickstart", action="store_true", help="the quickstart's study as well (minutes)"
    )
    parser.add_argument("--only", nargs="+", metavar="STUDY", help="these studies only")
    options = parser.parse_args()
    is_equal = True
    with tempfile.TemporaryDirectory() as made, checkout(options.against) as other:
        folder = Path(made)
        commands = studies(folder) | (quickstart(folder) if options.quickstart else {})
        for name, command in commands.items():
            if options.only and name not in options.only:
                continue
            before = results(other, name, command, folder / "before" / name)
            after = results(ROOT, name, command, folder / "after" / name)
            changed = differences(before, after)
            is_equal &= not changed
            counts = ", ".join(
                f"{len(after[part])} {part}" for part in ("recipes", "blocks", "vectors")
            )
            print(
                f"{name}: {'DIFFERS in ' + ', '.join(changed) if changed else 'equal'} ({counts};"
                f" {digest(after)})"
            )
            for part in changed:
                print(
                    json.dumps(
                        {part: [str(before[part])[:2000], str(after[part])[:2000]]}, indent=2
                    )
                )
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
