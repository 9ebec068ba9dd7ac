"""λ → λ′ and items a second on a GPU: ``make bench-gpu`` (point 9); says so where there is none."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks import families, program
from benchmarks.figures import Ledger, Target, interleaved
from benchmarks.large import DTYPE
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.recipe import make_method, make_recipe
from cabs_search.spec.locations import cache_folder
from cabs_search.tasks.load import load_items

COPIED = 4 << 30
"""Bytes of the copy that measures the device's bandwidth, where there is room for them."""


def waited(act: Callable[[], object]) -> Callable[[], object]:
    """The act and the end of what it started on the device."""

    def done() -> None:
        act()
        torch.cuda.synchronize()

    return done


def next_lambda(ledger: Ledger, layers: int, nms: tuple[tuple[int, int], ...]) -> None:
    """Mistral-7B's shapes, 2 experts, base and vectors on the device."""
    shapes = families.mistral(layers)
    room = torch.cuda.mem_get_info()[0] // 4
    source = torch.empty(min(COPIED, room) // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    with families.scratch() as root:
        ledger.say(f"  making {families.numel(shapes) / 1e9:.2f} G weights three times")
        base, experts = families.write(root / "models", shapes, 2, DTYPE)
        family = Family.open(base, experts)
        for n, m in nms:
            method = make_method("cabs", tuple(experts), nm=(n, m))
            ledger.say(f"  building entries {n}:{m}")
            vectors = program.vectors(VectorCache(root / "cache"), family, method)
            held = program.resident(family, "cuda")
            turns = itertools.cycle(
                [make_recipe(method, dict.fromkeys(experts, value)) for value in (0.4, 0.7)]
            )
            act = waited(lambda h=held, v=vectors, t=turns: h.materialize(v, next(t)))  # type: ignore[misc]
            times = interleaved(
                {"ours": act, "copy": waited(lambda: target.copy_(source))}, rounds=9, warm=3
            )
            moved, copied = program.moved_bytes(family, vectors), 2 * source.nbytes
            ledger.add(
                part="gpu",
                what=(
                    f"λ → λ′, {families.numel(shapes) / 1e9:.2f} G weights, bfloat16, 2 experts,"
                    f" cabs {n}:{m}"
                ),
                value=moved / times["ours"] / 1e9,
                unit="GB/s",
                limit="device copy",
                limit_value=copied / times["copy"] / 1e9,
                target=Target(of="over", most=1 / 0.6),
                note=(
                    f"{moved / 1e9:.1f} GB must move: {times['ours'] * 1e3:.2f} ms; 60 % of the"
                    " limit is the target"
                ),
            )
            del held, act
            torch.cuda.empty_cache()


def items(ledger: Ledger, dtype: Literal["float32", "bfloat16"], count: int = 600) -> None:
    """The quickstart's tasks, every item scored after a λ → λ′, as a worker does for each
    candidate.
    """
    spec = replace(
        families.quickstart(("topic", "headline", "tweets"), count), device="cuda", dtype=dtype
    )
    bench = program.workbench(spec, cache_folder())
    found = {task: load_items(spec, task)["search"] for task in spec.tasks}
    rows = {task: np.arange(len(i)) for task, i in found.items()}
    method = make_method("cabs", tuple(spec.experts), nm=(3, 32))
    turns = itertools.cycle(
        [make_recipe(method, dict.fromkeys(spec.experts, value)) for value in (1.2, 1.5)]
    )

    def candidate() -> None:
        bench.materialize(next(turns))
        program.score(bench, found, rows)

    seconds = interleaved({"ours": waited(candidate)})["ours"]
    what = (
        f"candidates of {sum(map(len, rows.values()))} quickstart items, {dtype}, end to end in one"
        " process"
    )
    ledger.add(part="gpu", what=what, value=sum(map(len, rows.values())) / seconds, unit="items/s")


def main() -> int:
    """0 also where there is no GPU."""
    parser = argparse.ArgumentParser(prog="make bench-gpu")
    parser.add_argument(
        "--layers", type=int, default=32, help="of Mistral-7B's 32; disk for 57 GB is needed"
    )
    parser.add_argument("--json", type=Path, default=Path("bench-gpu.json"))
    chosen = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ledger = Ledger(chosen.json)
    ledger.machine["gpu"] = torch.cuda.get_device_name()
    ledger.begin("gpu")
    next_lambda(ledger, chosen.layers, ((64, 256), (3, 32)))
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    for dtype in dtypes:
        try:
            items(ledger, dtype)
        except (ImportError, ValueError) as error:
            ledger.say(f"  items a second are not measured: {error}")
    print(ledger.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
