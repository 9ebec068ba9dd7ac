"""Before a search: what it would do and need, and what its pruned vectors look like."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from cabs_search.baselines import baselines, singles
from cabs_search.evaluate import BATCH_TOKENS, Workbench, batches, check_heads
from cabs_search.launch import load_study_items
from cabs_search.locations import cache_folder
from cabs_search.materialize import PLAN_BYTES
from cabs_search.recipe import Cabs, Method, TaskArithmetic, make_method
from cabs_search.report import table
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
            ("vectors", f"{self.vectors} ({self.vectors_cached} in the cache), about {_size(self.cache_bytes)} in all"),
            ("memory a worker", f"about {_size(self.worker_bytes)}"),
            ("speed a worker", f"{self.items_per_second:.0f} items/s, measured now"),
            ("time", f"about {self.seconds / 60:.1f} minutes once workers run"),
        ]
        resolved = yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True)
        return "\n".join([resolved, *table(rows)])


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
    methods = {*methods_of(spec), *(r.method for r in baselines(spec))}
    entries = {path: _entry_bytes(family, m) for m in methods for path in store.paths(family, m).values()}
    candidates = min(spec.search.trials, size(spec) + len(baselines(spec)))
    rows = len(singles(spec)) + len(spec.baselines) + min(spec.search.confirm, candidates)
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
        vectors_cached=sum(path.exists() for path in entries),
        cache_bytes=sum(entries.values()),
        worker_bytes=weights * getattr(torch, spec.dtype).itemsize + _ready_bytes(family, methods) + LIBRARY_BYTES,
        items_per_second=speed,
        seconds=total / speed / spec.workers,
    )


def methods_of(spec: Spec) -> Iterator[Method]:
    """Every method with every setting that the space holds."""
    for name in spec.space.method:
        settings = (
            itertools.product(spec.space.nm, spec.orders) if name == "cabs" else [(spec.space.nm[0], spec.orders[0])]
        )
        for nm, order in settings:
            yield make_method(
                name, tuple(spec.experts), nm=nm, order=order, overlap=spec.space.overlap, tail=spec.space.tail
            )


def _kept_share(method: Method) -> float:
    return method.nm[0] / method.nm[1] if isinstance(method, Cabs) else 1.0


def _ready_bytes(family: Family, methods: Iterable[Method]) -> int:
    """Memory of vectors made ready: the largest in use, and as many more as are kept beside it."""
    weights, experts = family.alignment.weights, len(family.experts)
    sizes = [
        int(weights * min(1.0, experts * _kept_share(m)) * (POSITION_BYTES + 4) if isinstance(m, Cabs) else 4 * weights)
        for m in methods
    ]
    return max(sizes) + min(PLAN_BYTES, sum(sizes) - max(sizes))


def _entry_bytes(family: Family, method: Method) -> int:
    kept = family.alignment.weights * _kept_share(method)
    if isinstance(method, TaskArithmetic):
        return int(4 * kept)
    return int(min(ENTRY_BYTES_KEPT * kept, 4 * kept + family.alignment.weights / 8))


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


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """The pruned vectors of one method with its settings."""

    method: str
    experts: tuple[str, ...]
    """In pruning order."""
    density: Mapping[str, Mapping[str, float]]
    """By tensor and expert, the share of weights kept."""
    kept: Mapping[str, float]
    """By expert, the share of all shared weights kept."""
    overlap: tuple[tuple[float, ...], ...]
    """|mask_a and mask_b| / |mask_a|, a down, b across."""
    cache_bytes: Mapping[str, int]
    """By expert."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """For a terminal."""
        per_tensor = [[t, *(f"{d[e]:.4f}" for e in self.experts)] for t, d in self.density.items()]
        overlap = [[e, *(f"{v:.2%}" for v in row)] for e, row in zip(self.experts, self.overlap, strict=True)]
        totals = [
            ["all shared weights", *(f"{self.kept[e]:.4f}" for e in self.experts)],
            ["bytes in the cache", *(_size(self.cache_bytes[e]) for e in self.experts)],
        ]
        return "\n".join(
            [
                f"{self.method}",
                "",
                *table([["density", *self.experts], *per_tensor, *totals]),
                "",
                *table([["overlap", *self.experts], *overlap]),
            ]
        )


def vectors(spec: Spec) -> list[Vectors]:
    """Build what the cache lacks of a space's vectors, and look at them.

    Raises:
        ValueError: the spec's models are wrong.

    """
    family, store = Family.open(spec.base, spec.experts), Store(cache_folder())
    methods = list(dict.fromkeys([*methods_of(spec), *(r.method for r in baselines(spec))]))
    bar = tqdm(methods, desc="vectors", unit="method", file=sys.stderr)
    return [_inspect(family, store, method) for method in bar]


def _inspect(family: Family, store: Store, method: Method) -> Vectors:
    opened = store.open(store.ensure(family, method))
    names = tuple(opened)
    shapes = family.alignment.shapes
    numel = {tensor: family.numel(tensor) for tensor in shapes}
    kept = {name: vector.kept_per_tensor for name, vector in opened.items()}
    common = np.zeros((len(names), len(names)))
    for tensor in shapes:
        masks = np.zeros((len(names), numel[tensor]), dtype=np.bool_)
        for i, vector in enumerate(opened.values()):
            part = vector.kept(tensor, numel[tensor])
            if part is not None:
                masks[i, ... if part.positions is None else part.positions.numpy()] = (
                    part.values.numpy() != 0 if part.positions is None else True
                )
        for i, j in itertools.product(range(len(names)), repeat=2):
            common[i, j] += np.count_nonzero(masks[i] & masks[j])
    sizes = np.maximum(np.diag(common), 1)
    weights = sum(numel.values())
    return Vectors(
        method=method.name
        if not isinstance(method, Cabs)
        else f"cabs {method.nm[0]}:{method.nm[1]} {'>'.join(method.order)}",
        experts=names,
        density={t: {n: kept[n].get(t, 0) / numel[t] for n in names} for t in shapes},
        kept={n: sum(kept[n].values()) / weights for n in names},
        overlap=tuple(tuple(float(v) for v in row) for row in common / sizes[:, None]),
        cache_bytes={n: v.bytes for n, v in opened.items()},
    )


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
