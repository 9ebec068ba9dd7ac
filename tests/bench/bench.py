"""Speed against named rivals, measured in one run, interleaved, medians: ``make bench``.

Prints a table and writes bench.json. Rivals: masks by ``torch.topk`` in blocks, and for each candidate a merge from the
checkpoints (pruned anew), written by ``save_pretrained`` and read back by ``from_pretrained``, as a search without
cached vectors and a resident model does.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from cabs_search.locations import cache_folder
from cabs_search.materialize import Resident, merged_tensors
from cabs_search.quickstart.experts import make
from cabs_search.recipe import Method, make_method, make_recipe
from cabs_search.report import table
from cabs_search.sparsify import nm_mask
from cabs_search.spec import load
from cabs_search.store import Family, Store

ROUNDS = 7


def topk_mask(delta: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The rival: torch.topk over blocks, full blocks only."""
    blocks = delta.reshape(-1)[: delta.numel() // m * m].reshape(-1, m).abs()
    mask = torch.zeros_like(blocks, dtype=torch.bool)
    return mask.scatter_(1, blocks.topk(n, dim=1).indices, value=True)


def rewritten(family: Family, method: Method, lambdas: Mapping[str, float], folder: Path) -> None:
    """The rival: merge, write a checkpoint, read it back."""
    expert = next(iter(family.experts))
    checkpoint = family.experts[expert]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint.folder)
    state = model.state_dict()
    for name, tensor in merged_tensors(family, make_recipe(method, lambdas)):
        state[checkpoint.model_name(name)].copy_(tensor)
    model.save_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(folder)


def medians(acts: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, taken in turns, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for i in range(ROUNDS + 1):
        for name, act in acts.items():
            start = time.perf_counter()
            act()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> int:
    """Measure, print, write."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    make()
    spec = load("quickstart")
    family, store = Family.open(spec.base, spec.experts), Store(cache_folder())
    delta = torch.randn(1536, 4096)
    results = []
    for n, m in ((3, 32), (64, 256)):
        times = medians(
            {"ours": lambda n=n, m=m: nm_mask(delta, n, m), "rival": lambda n=n, m=m: topk_mask(delta, n, m)}
        )
        results.append((f"mask {n}:{m}, {delta.numel() / 1e6:.1f} M weights", "torch.topk", times))
    tensors = {name: torch.empty(shape) for name, shape in family.alignment.shapes.items()}
    resident = Resident(family.base, tensors)
    for name in ("cabs", "task-arithmetic"):
        method = make_method(name, tuple(spec.experts), nm=(3, 32))
        vectors = store.open(store.ensure(family, method.mask))
        recipe = make_recipe(method, dict.fromkeys(spec.experts, 1.0))
        with tempfile.TemporaryDirectory() as folder:
            times = medians(
                {
                    "ours": lambda v=vectors, r=recipe: resident.materialize(v, r),
                    "rival": lambda m=method, d=folder: rewritten(family, m, dict.fromkeys(spec.experts, 1.0), Path(d)),
                }
            )
        results.append((f"next λ, {name}, 4 experts of 22.7 M weights", "prune, merge, write, load", times))
    rows = [
        [what, f"{t['ours'] * 1e3:.1f} ms", rival, f"{t['rival'] * 1e3:.1f} ms", f"{t['rival'] / t['ours']:.1f} x"]
        for what, rival, t in results
    ]
    print("\n".join(table([["what", "cabs-search", "rival", "takes", "ratio"], *rows])))
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    print(f"medians of {ROUNDS} interleaved rounds; {machine}")
    found = [{"what": w, "rival": r, "seconds": t["ours"], "rival_seconds": t["rival"]} for w, r, t in results]
    Path("bench.json").write_text(json.dumps({"machine": machine, "results": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
