"""A gradient pass against a scored block of the same items, in time and memory; λ-gradients of a
layer of 7B shapes, tensor by tensor.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from benchmarks import families, program
from benchmarks.figures import Ledger, Target, copier, in_fresh_process, interleaved, threads
from benchmarks.large import DTYPE, Peak
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import Method, make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_items

TASKS = ("topic", "headline", "tweets", "lead")
ITEMS = 60
"""Of each task."""
LAYER = {name: shape for name, shape in families.mistral(1).items() if ".layers." in name}


def measure(ledger: Ledger) -> None:
    """The quickstart's experts on one core, as a worker has it; then a layer, streamed."""
    spec = families.quickstart(TASKS, ITEMS)
    with threads(1):
        for method, lambda_ in _methods(spec).items():
            _passes(ledger, spec, method, lambda_)
    worker, with_gradients = in_fresh_process(peaks, spec, cache_folder())
    ledger.add(
        part="gradients",
        what="gradient passes, quickstart's 4 experts: peak memory of the process",
        value=with_gradients / 1e6,
        unit="MB",
        limit="of scoring",
        limit_value=worker / 1e6,
        target=Target(of="over", most=1.3),
        note="memory that is no file's",
    )
    _layer(ledger)


def _methods(spec: Spec) -> dict[Method, float]:
    """Return methods with a λ: whole vectors and sparse ones."""
    experts = tuple(spec.experts)
    return {
        make_method("task-arithmetic", experts): 0.5,
        make_method("cabs", experts, nm=(3, 32)): 1.6,
    }


def _items(spec: Spec) -> tuple[dict[str, Items], dict[str, np.ndarray]]:
    return (
        {task: load_items(spec, task)["search"] for task in spec.tasks},
        dict.fromkeys(spec.tasks, np.arange(ITEMS)),
    )


def _passes(ledger: Ledger, spec: Spec, method: Method, lambda_: float) -> None:
    bench = program.workbench(spec, cache_folder())
    items, rows = _items(spec)
    bench.materialize(make_recipe(method, dict.fromkeys(spec.experts, lambda_)))
    acts = {
        "gradients": lambda: program.score_with_gradients(bench, items, rows),
        "score": lambda: program.score(bench, items, rows),
    }
    times = interleaved(acts, rounds=5, budget=60)
    ledger.add(
        part="gradients",
        what=f"scores and λ-gradients of {ITEMS * len(rows)} items, 4 experts, {method}, 1 thread",
        value=times["gradients"],
        unit="s",
        limit="scores alone",
        limit_value=times["score"],
        target=Target(of="over", most=3.2),
    )


def peaks(spec: Spec, cache: Path) -> tuple[int, int]:
    """Return the peak of private memory while a worker scores, and with gradients."""
    torch.set_num_threads(1)
    found = []
    with Peak() as peak:
        bench = program.workbench(spec, cache)
        items, rows = _items(spec)
        for method, lambda_ in _methods(spec).items():
            bench.materialize(make_recipe(method, dict.fromkeys(spec.experts, lambda_)))
            program.score(bench, items, rows)
        found.append(peak.bytes)
        program.score_with_gradients(bench, items, rows)
    return found[0], peak.bytes


def _layer(ledger: Ledger) -> None:
    """λ-gradients from gradients of a layer's tensors, each dropped before the next."""
    weights = families.numel(LAYER)
    with families.scratch() as root:
        base, experts = families.write(root / "models", LAYER, 2, DTYPE)
        family = Family.open(base, experts)
        method = make_method("cabs", tuple(experts), nm=(64, 256))
        vectors = program.vectors(VectorCache(root / "cache"), family, method)
        held = program.resident(family)
        held.materialize(vectors, make_recipe(method, dict.fromkeys(experts, 1.0)))
        pool = torch.randn(max(t.numel() for t in program.tensors(held).values())).to(DTYPE)

        def stream() -> None:
            for name, tensor in program.tensors(held).items():
                held.inner_products(name, pool[: tensor.numel()])

        moved = weights * DTYPE.itemsize + sum(
            program.entry_bytes(vector.path) for vector in vectors.values()
        )
        times = interleaved({"ours": stream, "copy": copier(moved)})
        with Peak() as before:
            pass
        with Peak() as during:
            stream()
    shapes = f"a layer of 7B shapes ({weights / 1e6:.0f} M weights)"
    what = f"λ-gradients of {shapes}, 2 experts, {method.name} {method.amount}"
    ledger.add(
        part="gradients",
        what=what,
        value=times["ours"],
        unit="s",
        limit="copying as many bytes",
        limit_value=times["copy"],
        note="bfloat16 gradients, as a backward pass leaves them, tensor by tensor",
    )
    ledger.add(
        part="gradients",
        what=f"{what}: memory, a tensor's gradient included",
        value=(pool.nbytes + during.bytes - before.bytes) / 1e6,
        unit="MB",
        limit="one layer",
        limit_value=weights * DTYPE.itemsize / 1e6,
        target=Target(of="over", most=1),
    )
