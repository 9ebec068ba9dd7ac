"""Before a search: what it would do and need."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cabs_search.common.formats import show_bytes, table
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED, KeepAll, density_of
from cabs_search.merging.recipe import SUM, Method
from cabs_search.merging.resident import VECTOR_BYTES
from cabs_search.scoring.batches import batch_tokens, batches
from cabs_search.scoring.calibrate import check_calibration
from cabs_search.scoring.models import check_heads, pick_device
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.candidates import baselines, methods_of, reference_recipes
from cabs_search.search.samplers.registry import find_sampler
from cabs_search.spec.load import load
from cabs_search.spec.locations import UnreachableError, cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows.prepare import check_groups

ENTRY_BYTES_KEPT = 4 + 1
"""A kept weight on disk: float32 and, unless a bit a weight is less, one byte for its position."""
MOST_METHODS = 5000
"""Methods that are looked at one by one."""
LIBRARY_BYTES = 700 << 20
"""What torch, transformers and Ray take in each worker."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What only models and data can tell."""

    items: int
    """To be scored in all, at the most."""
    vectors_cached: int
    cache_bytes: int
    """Of all vectors, about."""
    worker_bytes: int
    """Memory of one worker, about: the model and the libraries; on a GPU also the base and vectors,
    which are mapped files, and shared, on the CPU.
    """
    items_per_second: float
    """Measured just now with one worker's threads."""
    seconds: float
    """For all workers together, about, without starting and building vectors."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would do and need."""

    spec: dict[str, Any]
    """As resolved: every default and every location written out; hub ids that cannot be had as they
    are.
    """
    candidates: int
    """To be scored on the search split."""
    space: int
    """Distinct candidates that the space holds."""
    rows: int
    """To be scored on the confirm split, at the most."""
    vectors: int
    """Vectors that the space may need."""
    needs: Needs | None
    """None where models or data cannot be had now."""
    unreachable: str | None
    """Which those are."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = asdict(self)
        return values | (values.pop("needs") or {})

    def as_text(self) -> str:
        """For a terminal."""
        rows = [
            ("candidates", f"{self.candidates} of {self.space:,} in the space"),
            ("confirm rows", f"{self.rows}"),
        ]
        if self.needs is None:
            rows += [
                ("vectors", f"{self.vectors}"),
                ("bytes, memory, time", f"unknown: {self.unreachable}"),
            ]
        else:
            rows += _needs_rows(self.vectors, self.needs)
        resolved = yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True)
        return "\n".join([resolved, *table(rows)])


def _needs_rows(vectors: int, needs: Needs) -> list[tuple[str, str]]:
    stored = (
        f"{vectors} ({needs.vectors_cached} in the cache), about {show_bytes(needs.cache_bytes)}"
        " in all"
    )
    return [
        ("items to score", f"{needs.items:,}"),
        ("vectors", stored),
        ("memory a worker", f"about {show_bytes(needs.worker_bytes)}"),
        ("speed a worker", f"{needs.items_per_second:.0f} items/s, measured now"),
        ("time", f"about {needs.seconds / 60:.1f} minutes once workers run"),
    ]


def plan(path: str | Path) -> Plan:
    """Work out what a search would need; loads the model and scores a few items, starts no worker.

    Where the hub does not give what the spec names, the plan says so and holds what can be said
    without it.

    Args:
        path: a spec's file, or the name of one that ships.

    Raises:
        ValueError: the spec, its models or its data are wrong.

    """
    try:
        return _plan(load(path))
    except UnreachableError as error:
        return _plan(load(path, download=False), str(error))


def _plan(spec: Spec, unreachable: str | None = None) -> Plan:
    from cabs_search.search.space import size

    check_calibration(spec)
    find_sampler(spec.search.sampler)
    methods = {
        *itertools.islice(methods_of(spec), MOST_METHODS),
        *(r.method for r in baselines(spec)),
    }
    candidates = min(spec.search.trials, size(spec) + len(baselines(spec)))
    rows = len(reference_recipes(spec)) + len(spec.baselines) + min(spec.search.confirm, candidates)
    entries: dict[Any, int] = dict.fromkeys(
        ((m, e) for one in methods for m in _steps(one) for e in spec.experts), 0
    )
    needs = None
    if unreachable is None:
        items, store = load_study_items(spec), VectorCache(cache_folder())
        family = Family.open(spec.base, spec.experts)
        check_heads(spec, family)
        check_groups(spec, family)
        entries = _entries(family, store, {step for method in methods for step in _steps(method)})
        searched, confirmed = (
            sum(len(i) for i in items[split].values()) for split in ("search", "confirm")
        )
        total, speed = (
            candidates * searched + rows * confirmed,
            _items_per_second(spec, store, items),
        )
        model_bytes = family.alignment.weights * getattr(torch, spec.dtype).itemsize
        needs = Needs(
            items=total,
            vectors_cached=sum(isinstance(entry, Path) and entry.exists() for entry in entries),
            cache_bytes=sum(entries.values()),
            worker_bytes=model_bytes + _device_bytes(spec, family, methods) + LIBRARY_BYTES,
            items_per_second=speed,
            seconds=total / speed / spec.workers,
        )
    return Plan(
        spec=spec.as_dict(),
        candidates=candidates,
        space=size(spec),
        rows=rows,
        vectors=len(entries),
        needs=needs,
        unreachable=unreachable,
    )


def _steps(method: Method) -> set[Method]:
    """The method, and what its combine rule begins with: each is an entry of every vector."""
    return {method, Method(mask=method.mask)}


def _device_bytes(spec: Spec, family: Family, methods: Iterable[Method]) -> int:
    """Of a GPU: the base and the vectors of a candidate, and as many more as are kept beside
    them.
    """
    if pick_device(spec.device) == "cpu":
        return 0
    base = sum(family.base.read(tensor).nbytes for tensor in family.alignment.shared)
    sizes = [_vector_bytes(family, m, e) for m in methods for e in family.experts]
    largest = max(sum(_vector_bytes(family, m, e) for e in family.experts) for m in methods)
    return base + largest + min(VECTOR_BYTES, sum(sizes) - largest)


def _entries(
    family: Family, store: VectorCache, methods: Iterable[Method]
) -> dict[Path | tuple[Method, str], int]:
    """About how many bytes each entry takes; its path, unless that is known only after a
    calibration pass.
    """
    found: dict[Path | tuple[Method, str], int] = {}
    for method in methods:
        paths = {} if isinstance(method.mask, CALIBRATED) else store.paths(family, method)
        for expert in family.experts:
            found[paths.get(expert, (method, expert))] = _entry_bytes(family, method, expert)
    return found


def _entry_bytes(family: Family, method: Method, expert: str) -> int:
    weights, kept = (
        family.alignment.weights,
        family.alignment.weights * density_of(method.mask, expert),
    )
    if isinstance(method.mask, KeepAll) and method.combine == SUM:
        return 4 * weights
    return int(min(ENTRY_BYTES_KEPT * kept, 4 * kept + weights / 8))


def _vector_bytes(family: Family, method: Method, expert: str) -> int:
    """On a GPU: values, and where each stands."""
    dense = isinstance(method.mask, KeepAll) and method.combine == SUM
    return int(family.alignment.weights * density_of(method.mask, expert) * (4 if dense else 4 + 4))


def _items_per_second(
    spec: Spec, store: VectorCache, items: Mapping[SplitName, Mapping[str, Items]]
) -> float:
    """One worker's speed on a batch of each task, after one to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // spec.workers))
    try:
        bench = Workbench(spec, store)
        seconds = 0.0
        for task, mine in items["search"].items():
            chosen = list(batches(mine.lengths, mine.counts, batch_tokens(bench.device)))
            rows = chosen[len(chosen) // 2]
            bench.score({task: mine}, {task: rows})
            start = time.perf_counter()
            bench.score({task: mine}, {task: rows})
            seconds += (time.perf_counter() - start) / len(rows) * len(mine)
        return sum(len(i) for i in items["search"].values()) / seconds
    finally:
        torch.set_num_threads(threads)
