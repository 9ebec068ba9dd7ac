"""λ → λ′, documents and items a second, and candidates an hour on a GPU: ``make bench-gpu`` (point
9); says so where there is none.
"""

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
from cabs_search.kinds.base import Item
from cabs_search.kinds.causal import to_score_packed
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import Method, make_method
from cabs_search.merging.recipe import Recipe, make_recipe
from cabs_search.scoring.workbench import Workbench
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.task import DataSource, Task
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_items

COPIED = 4 << 30
"""Bytes of the copy that measures the device's bandwidth, where there is room for them."""


def waited(act: Callable[[], object]) -> Callable[[], object]:
    """The act and the end of what it started on the device."""

    def done() -> None:
        act()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return done


def family_of(root: Path, shapes: families.Shapes) -> Family:
    """A base and two experts of Mistral's shapes, on disk."""
    base, experts = families.write(root / "models", shapes, 2, DTYPE)
    for folder in (base, *experts.values()):
        families.mistral_config(shapes).save_pretrained(folder)
    return Family.open(base, experts)


def next_lambda(
    ledger: Ledger, family: Family, cache: VectorCache, nms: tuple[tuple[int, int], ...]
) -> None:
    """λ → λ′ of two experts, base and vectors on the device."""
    room = torch.cuda.mem_get_info()[0] // 4
    source = torch.empty(min(COPIED, room) // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    for nm in nms:
        method = make_method("cabs", tuple(family.experts), nm=nm)
        ledger.say(f"  building entries {nm[0]}:{nm[1]}")
        vectors = program.vectors(cache, family, method)
        held = program.resident(family, "cuda")
        turns = itertools.cycle(_recipes(method, family))
        act = waited(lambda h=held, v=vectors, t=turns: h.materialize(v, next(t)))  # type: ignore[misc]
        times = interleaved(
            {"ours": act, "copy": waited(lambda: target.copy_(source))}, rounds=9, warm=3
        )
        moved, copied = program.moved_bytes(family, vectors), 2 * source.nbytes
        ledger.add(
            part="gpu",
            what=f"λ → λ′, {_size(family)}, cabs {nm[0]}:{nm[1]}",
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


def candidates(
    ledger: Ledger,
    family: Family,
    cache: VectorCache,
    device: str,
    documents: int = 200,
    tokens: int = 700,
) -> None:
    """Candidates of a language model: λ → λ′, and multiple choice of random tokens scored.

    Args:
        ledger: receives the figures.
        family: base and experts.
        cache: of their vectors.
        device: ``cuda`` or ``cpu``.
        documents: scored for each candidate, with four choices of 20 tokens each.
        tokens: of each document's context, about those of 25 examples of ARC.
    """
    own = choices(family, documents, tokens)
    bench = Workbench(family, {"choices": own.task}, cache, device=device, dtype="bfloat16")
    method = make_method("cabs", tuple(family.experts), nm=(64, 256))
    turns, rows = itertools.cycle(_recipes(method, family)), {"choices": np.arange(documents)}
    acts = {
        "merge": waited(lambda: bench.materialize(next(turns))),
        "score": waited(lambda: program.score(bench, {"choices": own}, rows)),
    }
    times = interleaved(acts, rounds=3)
    said = f"{documents} documents of {tokens} tokens and four choices of 20, {_size(family)}"
    values = {"part": "gpu", "note": f"λ → λ′ takes {times['merge'] * 1e3:.3g} ms"}
    ledger.add(what=said, value=documents / times["score"], unit="documents/s", **values)
    an_hour = 3600 / sum(times.values())
    ledger.add(what=f"candidates of {said}", value=an_hour, unit="candidates/h", **values)


def choices(family: Family, documents: int, tokens: int) -> Items:
    """Multiple choice of random tokens."""
    task = Task(
        dataset=DataSource(json="none"),
        kind="choices-by-likelihood",
        text="text",
        choices="choices",
    )
    draw, most = np.random.default_rng(0), family.base.config["vocab_size"]
    found = []
    for _ in range(documents):
        context, ends = draw.integers(most, size=tokens), draw.integers(most, size=(4, 20))
        sequences = [[*context.tolist(), *end.tolist()] for end in ends]
        marks = task.kind.marks(task, ("", *"abcd"), 0)
        found.append(Item(label=0, marks=marks, **to_score_packed(sequences, [20] * 4)))
    pad = dict.fromkeys(found[0].sequences[0], 0)
    return Items(task, tuple(map(str, range(documents))), tuple(found), pad)


def _recipes(method: Method, family: Family) -> list[Recipe]:
    return [make_recipe(method, dict.fromkeys(family.experts, value)) for value in (0.4, 0.7)]


def _size(family: Family) -> str:
    weights = family.alignment.weights
    return f"{weights / 1e9:.2f} G weights of Mistral's shapes, bfloat16, 2 experts"


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
        "--layers", type=int, default=32, help="of Mistral-7B's 32; disk for 64 GB is needed"
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
    shapes = families.mistral(chosen.layers)
    with families.scratch() as root:
        ledger.say(f"  making {families.numel(shapes) / 1e9:.2f} G weights three times")
        family, cache = family_of(root, shapes), VectorCache(root / "cache")
        next_lambda(ledger, family, cache, ((64, 256), (3, 32)))
        candidates(ledger, family, cache, "cuda")
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
