"""Pico models, two-layer BERTs, with a few dozen sentences: whole runs take seconds."""

from __future__ import annotations

import csv
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
WORDS = (
    *("good", "fine", "nice", "bad", "poor", "sad"),
    *("cat", "dog", "bird", "runs", "sits", "sleeps"),
    *("the", "a", "very"),
)
EXPERTS = ("mood", "animal", "pair")


def make_tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    vocab = folder / "vocab.txt"
    vocab.write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(vocab))
    tokenizer.save_pretrained(folder)
    return tokenizer


def make_config(**changes: Any) -> Any:
    from transformers import BertConfig

    settings = {
        "vocab_size": 5 + len(WORDS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 37,  # no multiple of any m: every tensor has a tail
        "max_position_embeddings": 32,
    }
    return BertConfig(**settings | changes)


def make_base(folder: Path, **changes: Any) -> Path:
    from transformers import BertModel

    torch.manual_seed(0)
    make_tokenizer(folder)
    BertModel(make_config(**changes)).save_pretrained(folder)
    return folder


def make_expert(folder: Path, base: Path, seed: int, labels: int) -> Path:
    """Save the base with most trunk weights moved a little and a head of its own."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    model = BertForSequenceClassification.from_pretrained(
        base, num_labels=labels, dtype=torch.float32
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if name.startswith("classifier") else 0.05
            # Word embeddings stay frozen, as in many experts.
            if "word_embeddings" not in name:
                parameter.add_(torch.randn_like(parameter), alpha=scale)
    model.save_pretrained(folder)
    make_tokenizer(folder)
    return folder


def write_rows(path: Path, seed: int, labels: int, count: int, *, pair: bool = False) -> Path:
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"] if pair else ["text", "label"])
        for _ in range(count):
            texts = [
                " ".join(draw.choices(WORDS, k=draw.randint(2, 9))) for _ in range(2 if pair else 1)
            ]
            writer.writerow([*texts, draw.randrange(labels)])
    return path


@pytest.fixture(scope="session")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder with a base, the experts mood, animal and pair, and their rows as CSV."""
    root = tmp_path_factory.mktemp("pico")
    base = make_base(root / "base")
    for seed, (name, labels) in enumerate(zip(EXPERTS, (2, 3, 2), strict=True), 1):
        make_expert(root / name, base, seed, labels)
        write_rows(root / f"{name}.csv", seed, labels, 120, pair=name == "pair")
    return root


def pico_values(pico: Path, **search: Any) -> dict[str, Any]:
    """Return a whole spec over the pico family, as the YAML file would hold it."""
    splits = {"search": {"items": 24}, "confirm": {"items": 24}, "max_length": 24}
    return {
        "name": "pico",
        "base": str(pico / "base"),
        "experts": {name: str(pico / name) for name in EXPERTS},
        "tasks": {
            name: {"dataset": {"csv": str(pico / f"{name}.csv")}, "text": "text", **splits}
            if name != "pair"
            else {"dataset": {"csv": str(pico / "pair.csv")}, "text": ["first", "second"], **splits}
            for name in EXPERTS
        },
        "space": {
            "nm": ["2:8", "8:32"],
            "order": "all",
            "lambda": {"low": 0.0, "high": 2.0, "step": 0.1},
        },
        "baselines": {"task-arithmetic": {"lambda": [0.5, 1.0]}, "cabs": {"lambda": [1.0, 1.5]}},
        "search": {"sampler": "tpe", "trials": 10, "block": 8, "workers": 2, "confirm": 2} | search,
        "device": "cpu",
        "tracking": {"model": "never"},  # which takes seconds
    }


def write_spec(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty vector cache for one test."""
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
