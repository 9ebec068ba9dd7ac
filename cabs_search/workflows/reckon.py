"""Memory and time of language models on named cards, reckoned where nothing can be measured.

A forward pass takes about 2 floating-point operations a parameter and token (Kaplan et al., arXiv
2001.08361), at a share of a card's peak that good code reaches. A token that is generated waits for
memory instead: each step reads all weights once and adds a token to every text of a batch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cabs_search.common.formats import show_bytes
from cabs_search.merging.family import Family
from cabs_search.merging.method import Method
from cabs_search.scoring.batches import GPU_CACHED_TOKENS
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Task
from cabs_search.tasks.items import SPLITS, SplitName
from cabs_search.workflows.sizes import GPU, gpu_bytes

SHARE = 0.4
"""Share of the peak, and of the memory's bandwidth."""
TOKENS = 1000
"""Tokens of an item, as how many it has is not known without its tokenizer."""
STEP_SECONDS = 0.01
"""Least time of a step of transformers' ``generate``: a model of 32 layers without any arithmetic
to speak of (width 64) takes 8 ms on a core at 2.5 GHz.
"""
DTYPE_BYTES: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a weight of the resident model."""
STORED_BYTES = 2
"""Bytes of a weight on disk, as nearly all language models have it."""
SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BbMm])(?![A-Za-z0-9])")
"""Number of parameters in a model's name, such as ``7B``."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU."""

    bytes: int
    peak: float
    """Floating-point operations a second: bfloat16, dense."""
    bandwidth: float
    """Bytes of its memory that it reads in a second."""


CARDS: Mapping[str, Card] = {
    "H100": Card(bytes=81_559 << 20, peak=989e12, bandwidth=3.35e12),
    "A100-80": Card(bytes=81_920 << 20, peak=312e12, bandwidth=2.039e12),
    "RTX 4090": Card(bytes=24_564 << 20, peak=165e12, bandwidth=1.008e12),
}
"""Cards by name: memory as their driver says it; peak and bandwidth of their data sheets (SXM)."""
FITS = 0.9
"""Share of a card's memory that may be full, so that activations have the rest."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Estimates of the texts that are generated in a phase."""

    texts: int
    """Texts in all, at most."""
    tokens: int
    """Tokens of them, at most: each text may have as many as its task allows."""
    hours: Mapping[str, float]
    """Hours of a card for them, by its name, after prompts of ``TOKENS`` tokens each."""


@dataclass(frozen=True, kw_only=True)
class Reckoned:
    """Estimates from the number of parameters alone."""

    parameters: float
    is_counted: bool
    """Whether parameters were counted; if not, they are in a model's name."""
    gpu: GPU
    """Memory of one worker on a GPU, without activations."""
    items: Mapping[SplitName, int]
    """Items to score in all, at most, but for texts and those of ``without``."""
    hours: Mapping[SplitName, Mapping[str, float]]
    """Hours of a card for these items, by its name, if each has ``TOKENS`` tokens."""
    writing: Mapping[SplitName, Writing]
    """Texts to generate beside them."""
    without: Mapping[str, str]
    """Tasks that are left out, in a phase or in both, and why."""

    def rows(self) -> list[tuple[str, str]]:
        """Return names and texts for a terminal."""
        source = "counted" if self.is_counted else "by its name"
        gpu = self.gpu
        fits = [name for name, card in CARDS.items() if gpu.total < FITS * card.bytes]
        memory = (
            f"about {show_bytes(gpu.total)} on a GPU, and activations: model"
            f" {show_bytes(gpu.model)}, base {show_bytes(gpu.base)}, vectors of {gpu.largest}"
            f" {show_bytes(gpu.vectors)}; fits {', '.join(fits) or 'none of ' + ', '.join(CARDS)}"
        )
        rows = [
            ("parameters", f"{self.parameters / 1e9:.3g} billion ({source})"),
            ("memory per worker", memory),
        ]
        if self.items["search"]:
            rows += [(f"hours to {split}", self._hours(split)) for split in SPLITS]
        if self.writing["search"].texts:
            rows += [(f"hours to {split}, texts", self._of_texts(split)) for split in SPLITS]
        rows += [("not reckoned", f"tasks.{task}: {why}") for task, why in self.without.items()]
        return rows

    def _hours(self, split: SplitName) -> str:
        return (
            f"{_by_card(self.hours[split])}, for each {TOKENS:,} tokens that an item has,"
            f" {self.items[split]:,} items at most, at {SHARE:.0%} of the peak"
        )

    def _of_texts(self, split: SplitName) -> str:
        found = self.writing[split]
        return (
            f"{_by_card(found.hours)}, to generate {found.tokens:,} tokens in {found.texts:,} texts"
            f" at most, after prompts of {TOKENS:,} tokens, at {SHARE:.0%} of the memory's"
            " bandwidth"
        )


def _by_card(hours: Mapping[str, float]) -> str:
    return ", ".join(f"{one:.2g} on {name}" for name, one in hours.items())


def reckon(
    spec: Spec,
    methods: Iterable[Method],
    candidates: int | None,
    passes: int,
    family: Family | None,
) -> Reckoned | None:
    """Reckon what a study of language models needs.

    Args:
        spec: the study.
        methods: those that it may score.
        candidates: of the search, at most; None: unknown.
        passes: how often all confirm items are read, at most.
        family: its models; None: they are not at hand.

    Returns:
        None if tasks are of other models, or the number of parameters is not known.

    """
    if not all(task.kind.is_causal for task in spec.tasks.values()):
        return None
    parameters = family.alignment.weights if family else _parameters(spec)
    if parameters is None:
        return None
    runs: dict[SplitName, int] = {"search": candidates or 0, "confirm": passes}
    items, without = dict.fromkeys(SPLITS, 0), dict[str, str]()
    texts: dict[SplitName, dict[str, int]] = {split: {} for split in SPLITS}
    for name, task in spec.tasks.items():
        counts: dict[SplitName, int | None] = {s: getattr(task, s).items for s in SPLITS}
        for split, count in counts.items():
            if task.kind.generates:
                texts[split][name] = runs[split] * (count or 0)
            else:
                items[split] += runs[split] * (count or 0)
        if unknown := [split for split, count in counts.items() if not count]:
            without[name] = f"the spec does not say how many items to {' and '.join(unknown)}"
    weight_bytes = parameters * DTYPE_BYTES[spec.dtype]
    return Reckoned(
        parameters=parameters,
        is_counted=family is not None,
        gpu=gpu_bytes(
            parameters, parameters * STORED_BYTES, spec.dtype, tuple(spec.experts), methods
        ),
        items=items,
        hours={
            split: {name: _hours(parameters, count, card) for name, card in CARDS.items()}
            for split, count in items.items()
        },
        writing={
            split: _writing(parameters, weight_bytes, spec.tasks, counts)
            for split, counts in texts.items()
        },
        without=without,
    )


def _writing(
    parameters: float, weight_bytes: float, tasks: Mapping[str, Task], texts: Mapping[str, int]
) -> Writing:
    """Reckon generation.

    Args:
        parameters: of the model.
        weight_bytes: all of them.
        tasks: by name.
        texts: number of texts by task, of those that generate.

    """
    most = {name: tasks[name].max_new_tokens or 0 for name in texts}
    hours = {}
    for card_name, card in CARDS.items():
        read, seconds = SHARE * card.bandwidth, 0.0
        for name, count in texts.items():
            batch = max(1, GPU_CACHED_TOKENS // (TOKENS + most[name]))
            step = max(
                STEP_SECONDS, weight_bytes / read, 2 * parameters * batch / (SHARE * card.peak)
            )
            seconds += -(-count // batch) * most[name] * step
        prompts = _hours(parameters, sum(texts.values()), card)
        hours[card_name] = prompts + seconds / 3600
    return Writing(
        texts=sum(texts.values()),
        tokens=sum(count * most[name] for name, count in texts.items()),
        hours=hours,
    )


def _hours(parameters: float, items: int, card: Card) -> float:
    return 2 * parameters * items * TOKENS / (SHARE * card.peak) / 3600


def _parameters(spec: Spec) -> float | None:
    """Return the number of parameters that the name of the base, or else of an expert, has."""
    for name in (spec.base, *spec.experts.values()):
        if found := SIZE.search(name):
            return float(found[1]) * (1e9 if found[2] in "Bb" else 1e6)
    return None
