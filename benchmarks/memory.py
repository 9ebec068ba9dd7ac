"""One process over hundreds of candidates: nothing may grow (point 6)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import torch

from benchmarks import families, program
from benchmarks.figures import Ledger, Target, in_fresh_process
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_items

CANDIDATES, EARLY = 500, 100
ITEMS = 4
"""Of each task, scored for every candidate."""


def measure(ledger: Ledger) -> None:
    """Memory after the first candidates and after all."""
    spec = families.quickstart(("topic", "headline", "tweets"), 8)
    early, late = in_fresh_process(grown, spec, cache_folder())
    ledger.add(
        part="memory",
        what=f"a process after {CANDIDATES} candidates (PSS)",
        value=late / 1e6,
        unit="MB",
        limit=f"after {EARLY}",
        limit_value=early / 1e6,
        target=Target(of="over", most=1.01),
        note=(
            f"each another λ, 2 orders and 2 n:m in turns; {ITEMS} items of 3 tasks scored for each"
        ),
    )


def grown(spec: Spec, cache: Path) -> tuple[int, int]:
    """Bytes after EARLY candidates and after CANDIDATES."""
    torch.set_num_threads(1)
    bench = program.workbench(spec, cache)
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    experts = tuple(spec.experts)
    methods = [
        make_method("cabs", experts, nm=nm, order=order)
        for nm in ((3, 32), (32, 256))
        for order in (experts, experts[::-1])
    ]
    early = 0
    for i in range(1, CANDIDATES + 1):
        recipe = make_recipe(methods[i // 25 % 4], dict.fromkeys(experts, 1 + i / CANDIDATES))
        bench.materialize(recipe)
        program.score(bench, items, {task: np.arange(ITEMS) for task in items})
        if i == EARLY:
            early = psutil.Process().memory_full_info().pss
    return int(early), int(psutil.Process().memory_full_info().pss)
