"""Before a search: what it would do and need."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from cabs_search.baselines import baselines, methods_of, singles
from cabs_search.evaluate import BATCH_TOKENS, Workbench, batches, check_heads
from cabs_search.launch import check_groups, load_study_items
from cabs_search.locations import cache_folder
from cabs_search.materialize import PLAN_BYTES
from cabs_search.recipe import Method
from cabs_search.report import table
from cabs_search.sparsify import CALIBRATED, Mask, Whole, density_of
from cabs_search.spec import Spec
from cabs_search.store import Family, Store
from cabs_search.tasks import Items, SplitName

ENTRY_BYTES_KEPT = 4 + 1
"""A kept weight on disk: float32 and, unless a bit a weight is less, one byte for its position."""

POSITION_BYTES = 8
"""A kept weight's position in memory."""
LIBRARY_BYTES = 700 << 20
"""What torch, transformers and Ray take in each worker."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search would do and need."""

    spec: dict[str, Any]
    """As resolved: every default and every location written out."""
    candidates: int
    """To be scored on the search split."""
    space: int
    """Distinct candidates that the space holds."""
    rows: int
    """To be scored on the confirm split, at the most."""
    items: int
    """To be scored in all, at the most."""
    vectors: int
    """Vectors that the space may need."""
    vectors_cached: int
    cache_bytes: int
    """Of all of these vectors, about."""
    worker_bytes: int
    """Memory of one worker beyond what all share, about: the model, vectors made ready and the libraries."""
    items_per_second: float
    """Measured just now with one worker's threads."""
    seconds: float
    """For all workers together, about, without starting and building vectors."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        rows = [
            ("candidates", f"{self.candidates} of {self.space:,} in the space"),
            ("confirm rows", f"{self.rows}"),
            ("items to score", f"{self.items:,}"),
            (
                "vectors",
                f"{self.vectors} ({self.vectors_cached} in the cache), about {show_bytes(self.cache_bytes)} in all",
            ),
            ("memory a worker", f"about {show_bytes(self.worker_bytes)}"),
            ("speed a worker", f"{self.items_per_second:.0f} items/s, measured now"),
            ("time", f"about {self.seconds / 60:.1f} minutes once workers run"),
        ]
        resolved = yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True)
        return "\n".join([resolved, *table(rows)])


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What can be said of a search without its models and data."""

    spec: dict[str, Any]
    """As resolved, with hub ids as they are."""
    candidates: int
    """To be scored on the search split."""
    space: int
    """Distinct candidates that the space holds."""
    rows: int
    """To be scored on the confirm split, at the most."""
    vectors: int
    """Vectors that the space may need, at the most."""
    unreachable: str
    """What the hub did not give."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        rows = [
            ("candidates", f"{self.candidates} of {self.space:,} in the space"),
            ("confirm rows", f"{self.rows}"),
            ("vectors", f"at most {self.vectors}"),
            ("bytes, memory, time", f"unknown: {self.unreachable}"),
        ]
        resolved = yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True)
        return "\n".join([resolved, *table(rows)])


def outline(spec: Spec, unreachable: str) -> Outline:
    """What a search would do, where its models or data cannot be had now; ``unreachable`` says which."""
    from cabs_search.search.space import size

    masks = {m.mask for m in [*methods_of(spec), *(r.method for r in baselines(spec))]}
    candidates = min(spec.search.trials, size(spec) + len(baselines(spec)))
    return Outline(
        spec=spec.as_dict(),
        candidates=candidates,
        space=size(spec),
        rows=_rows(spec, candidates),
        vectors=len(masks) * len(spec.experts),
        unreachable=unreachable,
    )


def _rows(spec: Spec, candidates: int) -> int:
    return len(singles(spec)) + len(spec.baselines) + min(spec.search.confirm, candidates)


def plan(spec: Spec) -> Plan:
    """Work out what a search would need; loads the model and scores a few items, starts no worker.

    Raises:
        ValueError: the spec's models or data are wrong.

    """
    from cabs_search.search.space import size

    items = load_study_items(spec)
    store = Store(cache_folder())
    family = Family.open(spec.base, spec.experts)
    check_heads(spec, family)
    check_groups(spec, family)
    methods = {*methods_of(spec), *(r.method for r in baselines(spec))}
    entries = _entries(family, store, {m.mask for m in methods})
    candidates = min(spec.search.trials, size(spec) + len(baselines(spec)))
    rows = _rows(spec, candidates)
    search_items, confirm_items = (sum(len(i) for i in items[split].values()) for split in ("search", "confirm"))
    speed = _items_per_second(spec, store, items)
    total = candidates * search_items + rows * confirm_items
    weights = family.alignment.weights
    return Plan(
        spec=spec.as_dict(),
        candidates=candidates,
        space=size(spec),
        rows=rows,
        items=total,
        vectors=len(entries),
        vectors_cached=sum(isinstance(entry, Path) and entry.exists() for entry in entries),
        cache_bytes=sum(entries.values()),
        worker_bytes=weights * getattr(torch, spec.dtype).itemsize + _ready_bytes(family, methods) + LIBRARY_BYTES,
        items_per_second=speed,
        seconds=total / speed / spec.workers,
    )


def _ready_bytes(family: Family, methods: Iterable[Method]) -> int:
    """Memory of vectors made ready: the largest in use, and as many more as are kept beside it."""
    weights = family.alignment.weights
    sizes = []
    for method in methods:
        kept = min(1.0, sum(density_of(method.mask, expert) for expert in family.experts))
        sizes.append(int(4 * weights if isinstance(method.mask, Whole) else weights * kept * (POSITION_BYTES + 4)))
    return max(sizes) + min(PLAN_BYTES, sum(sizes) - max(sizes))


def _entries(family: Family, store: Store, masks: Iterable[Mask]) -> dict[Path | tuple[Mask, str], int]:
    """About how many bytes each entry takes; its path, unless that is known only after a calibration pass."""
    found: dict[Path | tuple[Mask, str], int] = {}
    for mask in masks:
        paths = {} if isinstance(mask, CALIBRATED) else store.paths(family, mask)
        for expert in family.experts:
            found[paths.get(expert, (mask, expert))] = _entry_bytes(family, mask, expert)
    return found


def _entry_bytes(family: Family, mask: Mask, expert: str) -> int:
    weights, kept = family.alignment.weights, family.alignment.weights * density_of(mask, expert)
    return int(4 * weights if isinstance(mask, Whole) else min(ENTRY_BYTES_KEPT * kept, 4 * kept + weights / 8))


def _items_per_second(spec: Spec, store: Store, items: Mapping[SplitName, Mapping[str, Items]]) -> float:
    """One worker's speed on a batch of each task, after one to warm up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // spec.workers))
    try:
        bench = Workbench(spec, store)
        seconds = 0.0
        for task, mine in items["search"].items():
            chosen = list(batches(mine.lengths, BATCH_TOKENS))
            rows = chosen[len(chosen) // 2]
            bench.score(task, mine, rows)
            start = time.perf_counter()
            bench.score(task, mine, rows)
            seconds += (time.perf_counter() - start) / len(rows) * len(mine)
        return sum(len(i) for i in items["search"].values()) / seconds
    finally:
        torch.set_num_threads(threads)


def show_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
