"""Scoring items against a bare forward and against Trainer.predict padded to 128 (point 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks import families, program
from benchmarks.figures import CORES, Ledger, Target, interleaved, multiplier, threads
from benchmarks.rivals import PADDED, padded, predict
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_items

TWEETS, FULL = 200, 100
"""Items of each kind."""
BATCHES = (512, 1024, 2048, 4096, 8192)
"""Tokens a batch that a bare forward is tried with; the fastest counts."""


def measure(ledger: Ledger) -> None:
    """Tweets at their true length, and articles that fill 128 tokens."""
    with threads(CORES):
        for task, count, what, least in (
            ("tweets", TWEETS, "tweets at their true length", 3.0),
            ("topic", FULL, f"articles that fill {PADDED} tokens", 1.15),
        ):
            spec = families.quickstart((task,), count + count // 2, max_length=PADDED)
            items = load_items(spec, task)["search"]
            rows = (
                np.arange(len(items))
                if task == "tweets"
                else np.flatnonzero(items.lengths == PADDED)
            )
            _scored(ledger, spec, task, items, rows[:count], what, least)


def _scored(
    ledger: Ledger, spec: Spec, task: str, items: Items, rows: Any, what: str, least: float
) -> None:
    bench = program.workbench(spec, cache_folder())
    model = bench.models[task]
    given = padded([items.rows[i] for i in rows], items.pad)
    product, operations = multiplier()
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = program.score(bench, {task: items}, {task: rows})[task].predictions

    with families.scratch() as folder:

        def theirs() -> None:
            found["theirs"] = predict(model, given, folder)

        packed = bare(
            model, int(items.lengths[rows].sum()), round(float(items.lengths[rows].mean()))
        )
        acts = {"ours": ours, "bare": packed, "theirs": theirs, "product": product}
        times = interleaved(acts, rounds=4, budget=40)
    rate = len(rows) / times["ours"]
    limit = len(rows) / (
        forward_operations(model, items.lengths[rows]) / operations * times["product"]
    )
    values: dict[str, Any] = {
        "part": "evaluate",
        "what": f"{len(rows)} {what}",
        "value": rate,
        "unit": "items/s",
    }
    values |= {"limit": "matrix products at the machine's rate", "limit_value": limit}
    ledger.add(
        rival="a bare forward, perfectly packed",
        rival_value=len(rows) / times["bare"],
        target=Target(of="ratio", least=0.8),
        **values,
    )
    differ = int((np.asarray(found["ours"]) != found["theirs"]).sum())
    ledger.add(
        rival=f"Trainer.predict padded to {PADDED}",
        rival_value=len(rows) / times["theirs"],
        target=Target(of="ratio", least=least),
        **values,
    )
    ledger.add(
        part="evaluate",
        what=f"{len(rows)} {what}: predictions that differ from the Trainer's",
        value=float(differ),
        unit="",
        target=Target(of="value", most=0),
    )


def bare(
    model: Any, tokens: int, length: int, batches: Sequence[int] = BATCHES
) -> Callable[[], object]:
    """An act: so many tokens in sequences of one length through the model, no padding, no mask,
    nothing else, in the fastest of some sizes of ``batches``.
    """
    count = max(1, round(tokens / length))
    ids = torch.randint(
        1000, model.config.vocab_size, (count, length), generator=torch.Generator().manual_seed(0)
    )

    def forward(batch: int) -> None:
        with torch.inference_mode():
            for part in ids.split(max(1, batch // length)):
                model(input_ids=part)

    tried = interleaved({str(b): lambda b=b: forward(b) for b in batches}, rounds=2)  # type: ignore[misc]
    best = int(min(tried, key=lambda b: tried[b]))
    return lambda: forward(best)


def forward_operations(model: Any, lengths: Any) -> float:
    """Floating-point operations of the trunk's matrix products on items of these lengths, none
    padded.
    """
    linear = sum(
        m.weight.numel()
        for m in model.base_model.encoder.modules()
        if isinstance(m, torch.nn.Linear)
    )
    attention = 4.0 * model.config.num_hidden_layers * model.config.hidden_size
    return float((2.0 * linear * lengths + attention * lengths**2).sum())
