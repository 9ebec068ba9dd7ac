"""Estimate what a search would do and need, without starting it."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from cabs_search.checkpoints.adapter import is_adapter
from cabs_search.checkpoints.adapter_settings import AdapterSettings
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.common.formats import count_text, show_bytes, table
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import Method, calibration_note, check_experts
from cabs_search.merging.recipe import BASE
from cabs_search.record.folder import values_to_keep
from cabs_search.scoring.batches import blocks
from cabs_search.scoring.calibrate import check_calibration
from cabs_search.scoring.models import check_heads, pick_device
from cabs_search.scoring.workbench import Workbench
from cabs_search.search.candidates import Candidates, reference_recipes
from cabs_search.search.objectives.check import check_objective
from cabs_search.search.objectives.registry import objective_of, outsiders
from cabs_search.search.pruners.registry import check_pruner
from cabs_search.search.refine.check import check_refine, levels_of, most_items
from cabs_search.search.samplers.registry import check_sampler, check_size
from cabs_search.search.space import size
from cabs_search.spec.load import load_reachable
from cabs_search.spec.locations import UnreachableError, cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import SPLITS, Items, SplitName
from cabs_search.tasks.load import has_tokenizer, load_items
from cabs_search.workflows.nodes import Nodes, nodes_of
from cabs_search.workflows.prepare import check_generation, check_groups, with_layers, with_stack
from cabs_search.workflows.reckon import Reckoned, reckon
from cabs_search.workflows.sizes import Entry, entries_of, stack_bytes, worker_bytes
from cabs_search.workflows.speed import measured_speed, new_tokens

MOST_METHODS = 5000
"""Methods of a space to count vectors of."""
TYPICAL = {"surface": "26 % of that in the quickstart", "race": "87 % of that in simulations"}
"""Shares that are known of the items that pruners leave of a number of candidates, by name."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Estimates that need every model and all data."""

    search_items: int
    """Items to score in the search, at most."""
    refine_items: int
    """Items to refine λ by gradient, at most; a backward pass counts as two forward."""
    confirm_items: int
    """Items to score to confirm, at most."""
    vectors_cached: int
    cache_bytes: int
    """Estimated size of all vectors on disk."""
    worker_bytes: int
    """Estimated memory of one worker: the model and the libraries; on a GPU also the base and
    vectors, which on the CPU are mapped files that workers share.
    """
    items_per_second: float
    """Speed of one worker, measured now."""
    generating: float
    """Share of the time in which texts are generated, as long as those of the base."""
    new_tokens: int
    """Tokens to generate, at most: each text may have as many as its task allows."""
    search_seconds: float
    confirm_seconds: float
    """Estimated times for all workers together, without starting and building vectors."""

    @property
    def items(self) -> int:
        """Items to score in all, at most."""
        return self.search_items + self.refine_items + self.confirm_items

    @property
    def seconds(self) -> float:
        """Estimated time in all."""
        return self.search_seconds + self.confirm_seconds


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size and needs of a search."""

    spec: dict[str, Any]
    """The resolved spec: every default and location written out, and hub ids that cannot be
    downloaded now as they are.
    """
    candidates: int | None
    """Candidates to score on the search split; more, if a pruner stops some and the budget is not
    of candidates; None: unknown.
    """
    space: int | None
    """Distinct candidates in the space; None: unknown, as the model's layers are."""
    rows: int
    """Candidates to score on the confirm split, at most."""
    vectors: int
    """Vectors that the space may need."""
    heads: Mapping[str, tuple[str, ...]]
    """Tensors outside the trunk, which are never merged, by expert."""
    notes: tuple[str, ...]
    """Sentences on what is not as usual in the models."""
    needs: Needs | None
    """None if models or data cannot be read now."""
    nodes: Nodes
    """Bytes that nodes of a cluster hold, and that travel to them."""
    reckoned: Reckoned | None
    """Estimates of language models on named cards, where ``needs`` is None."""
    unreachable: tuple[str, ...]
    """Models and data that cannot be downloaded now, and tasks that could not be checked without
    them.
    """

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self) | {"unreachable": "; ".join(self.unreachable) or None}
        values |= {"nodes": self.nodes.as_dict()}
        totals = {"items": self.needs.items, "seconds": self.needs.seconds} if self.needs else {}
        return values | (values.pop("needs") or {}) | totals

    def as_text(self) -> str:
        """Format for a terminal."""
        rows = [
            ("candidates", f"{self._candidates_text} of {self._space_text} in the space"),
            ("confirm rows", f"{self.rows}"),
            *(("heads", text) for text in _heads_text(self.heads)),
            *(("note", text) for text in self.notes),
        ]
        if self.needs is None:
            rows += [("vectors", f"{self.vectors}")]
            unknown = [("bytes, memory, time", "unknown")]
            rows += self.reckoned.rows() if self.reckoned else unknown
            rows += [("not checked", text) for text in self.unreachable]
        else:
            rows += _needs_rows(self.vectors, self.needs, self.spec["search"])
        rows += self.nodes.rows()
        resolved = yaml.safe_dump(self.spec, sort_keys=False, allow_unicode=True)
        return "\n".join([resolved, *table(rows)])

    @property
    def _space_text(self) -> str:
        return "an unknown number" if self.space is None else count_text(self.space)

    @property
    def _candidates_text(self) -> str:
        if self.candidates is None:
            return "an unknown number"
        search = self.spec["search"]
        is_least = search["pruner"] and not search["trials"]
        return f"at least {self.candidates}" if is_least else f"{self.candidates}"


def _heads_text(heads: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Return a line for each set of tensors that are heads, with the experts that have them."""
    owners: dict[tuple[str, ...], list[str]] = {}
    for expert, tensors in heads.items():
        if tensors:
            owners.setdefault(tensors, []).append(expert)
    return [
        f"{', '.join(tensors)} of {', '.join(experts)}: never merged"
        for tensors, experts in owners.items()
    ]


def _needs_rows(
    vectors: int, needs: Needs, search_spec: Mapping[str, Any]
) -> list[tuple[str, str]]:
    size, pruner = show_bytes(needs.cache_bytes), search_spec["pruner"]
    limit = "at most " if pruner else ""
    confirm_limit = "at most " if search_spec["confirm_stops"] else ""
    is_of_candidates = not (search_spec["items"] or search_spec["seconds"])
    seen = f" ({TYPICAL[pruner]})" if pruner in TYPICAL and is_of_candidates else ""
    search, confirm = needs.search_seconds / 60, needs.confirm_seconds / 60
    refine = [("items to refine", f"at most {needs.refine_items:,}")] if needs.refine_items else []
    texts = []
    if needs.new_tokens:
        text = (
            f"{needs.generating:.0%} of the time, at most {needs.new_tokens:,} tokens; measured"
            " with texts as long as the base's"
        )
        texts.append(("texts to generate", text))
    stored = f"{vectors} ({needs.vectors_cached} in the cache), about {size} in all"
    return [
        ("items to search", f"{limit}{needs.search_items:,}{seen}"),
        *refine,
        ("items to confirm", f"{confirm_limit}{needs.confirm_items:,}"),
        ("vectors", stored),
        ("memory per worker", f"about {show_bytes(needs.worker_bytes)}"),
        ("speed per worker", f"{needs.items_per_second:.0f} items/s, measured now"),
        (
            "time",
            f"{limit or 'about '}{search:.1f} minutes to search, about {confirm:.1f} to confirm,"
            " once workers run",
        ),
        *texts,
    ]


def plan(path: str | Path) -> Plan:
    """Estimate what a search would need; load the models and score a few items, start no worker.

    If the hub does not give what the spec names, the rest is checked all the same, and the plan
    says what was not.

    Args:
        path: a spec's file, or the name of one that ships.

    Raises:
        ValueError: the spec is wrong, or its models or data as far as they can be read.

    """
    spec, missing = load_reachable(path)
    check_calibration(spec.methods, spec.experts, spec.tasks)
    check_experts(spec.methods, spec.experts)
    check_sampler(spec)
    check_objective(spec)
    check_pruner(spec.search, spec.tasks)
    family = _check_models(spec, missing)
    if family is not None and len(family.experts) == len(spec.experts):
        spec = with_stack(with_layers(spec, family.alignment.shared), family)
    check_size(spec)
    candidates = Candidates.of(spec)
    stacks, baselines = spec.space.stack, candidates.baseline_recipes
    space = None if stacks and stacks.layers is None else size(candidates)
    most = spec.search.budget.candidates or sys.maxsize
    if space is not None:
        most = min(most, space + len(baselines))
    rows = _most_rows(spec, most)
    passes = _most_passes(spec, rows)
    items, unreachable = _check_items(spec, missing)
    methods = {
        *itertools.islice(candidates.methods(), MOST_METHODS),
        *(recipe.method for recipe in baselines),
    }
    # A combine rule reads the vectors that its mask rule leaves: these are stored as well.
    steps = methods | {Method(mask=method.mask) for method in methods}
    trials = most if spec.search.budget.candidates else None
    vectors, needs, entries = len(steps) * len(spec.experts), None, None
    if family is not None and not unreachable:
        entries = entries_of(family, steps)
        vectors = len(entries)
        memory = worker_bytes(spec.device, spec.dtype, family, methods)
        if stacks:
            sources = stacks.sources_of(tuple(spec.experts))
            memory += stack_bytes(spec.device, spec.dtype, family, sources)
        trials, needs = _needs(spec, family, items, entries, memory, most, passes)
    as_used = {"sampler": spec.search.sampler_used, "pruner": spec.search.pruner_used}
    plain = values_to_keep(spec)
    return Plan(
        spec=plain | {"search": plain["search"] | as_used},
        candidates=trials,
        space=space,
        rows=rows,
        vectors=vectors,
        heads=family.alignment.heads if family else {},
        notes=_notes(spec, family),
        needs=needs,
        nodes=nodes_of(path, spec, missing, entries),
        reckoned=None if needs else reckon(spec, methods, trials, passes, family),
        unreachable=tuple(unreachable),
    )


def _notes(spec: Spec, family: Family | None) -> tuple[str, ...]:
    """Return sentences on what is not as usual."""
    notes = [*(family.notes if family else ()), calibration_note(spec.methods)]
    if spec.space.stack:
        notes.append(
            "a stack takes as long as it has layers; speed and times are those of the model's own"
        )
    return tuple(filter(None, notes))


def _most_rows(spec: Spec, candidates: int) -> int:
    """Return the number of rows of the leaderboard, at most; ``candidates``: at most."""
    references = len(reference_recipes(spec.experts)) + len(spec.ensembles)
    rows = references + len(spec.baselines) + min(spec.search.confirm, candidates)
    levels = levels_of(spec.search.refine, spec.space.groups) if spec.search.refine else ()
    return rows + len(levels)


def _most_passes(spec: Spec, rows: int) -> int:
    """Return how often all confirm items are read, at most: of an ensemble once for each model."""
    return rows + len(spec.ensembles) * (len(spec.experts) - 1)


def _needs(
    spec: Spec,
    family: Family,
    items: Mapping[SplitName, dict[str, Items]],
    entries: Mapping[Entry, int],
    memory: int,
    most: int,
    passes: int,
) -> tuple[int, Needs]:
    """Estimate what needs every model and all data; score a few items for it.

    Args:
        spec: the spec.
        family: its models.
        items: by split and task.
        entries: vectors with their bytes in the cache.
        memory: of a worker, in bytes.
        most: candidates of the search, at most.
        passes: how often all confirm items are read, at most.

    Returns:
        The candidates to score, and the estimates.

    """
    searched, confirmed = (sum(map(len, items[split].values())) for split in SPLITS)
    cache = VectorCache(cache_folder())
    bench = Workbench(
        family, spec.tasks, cache, device=spec.device, dtype=spec.dtype, generator=spec.generator
    )
    speed, generating = measured_speed(bench, items["search"], spec.workers)
    count = len(blocks(items["search"], spec.search.block))
    check_refine(spec, family.alignment.shared, count)
    refine_items = most_items(spec, searched, count)
    search_items = _search_items(spec, most, searched, speed * spec.workers)
    candidates = -(-search_items // searched)
    tokens = candidates * new_tokens(items["search"]) + passes * new_tokens(items["confirm"])
    search_items += searched * len(outsiders(objective_of(spec), Candidates.of(spec)))
    return candidates, Needs(
        search_items=search_items,
        refine_items=refine_items,
        confirm_items=passes * confirmed,
        vectors_cached=sum(isinstance(at, Path) and at.exists() for at in entries),
        cache_bytes=sum(entries.values()),
        worker_bytes=memory,
        items_per_second=speed,
        generating=generating,
        new_tokens=tokens,
        search_seconds=(search_items + refine_items) / speed / spec.workers,
        confirm_seconds=passes * confirmed / speed / spec.workers,
    )


def _search_items(spec: Spec, candidates: int, items: int, per_second: float) -> int:
    """Estimate the items that a search scores at most.

    Args:
        spec: the spec, with its budget.
        candidates: number of candidates at most.
        items: search items of one candidate.
        per_second: items that all workers score in a second.

    """
    budget = spec.search.budget
    limits = [candidates * items]
    if budget.items:
        limits.append(budget.items)
    if budget.seconds:
        limits.append(int(budget.seconds * per_second))
    least = min(limits)
    # the last candidate is scored to its end
    return min(-(-least // items) * items, candidates * items)


def _check_models(spec: Spec, missing: Mapping[str, str]) -> Family | None:
    """Check the models that are at hand, and return them; None without the base."""
    experts = {name: at for name, at in spec.experts.items() if f"experts.{name}" not in missing}
    pick_device(spec.device)
    if "base" in missing:
        for name, folder in experts.items():
            if is_adapter(folder):
                AdapterSettings.read(Path(folder))
            else:
                Checkpoint(folder, pickled=name in spec.pickled)
        return None
    family = Family.open(spec.base, experts, spec.vocabulary, spec.pickled)
    check_generation(spec, family)
    at_hand = {BASE, *experts}
    check_heads({task: name for task, name in spec.heads.items() if name in at_hand}, family)
    is_whole = len(experts) == len(spec.experts)
    check_groups(spec.space.groups, family.alignment.shared, is_whole=is_whole)
    return family


def _check_items(
    spec: Spec, missing: Mapping[str, str]
) -> tuple[dict[SplitName, dict[str, Items]], list[str]]:
    """Read the items of tasks whose data and models are at hand.

    Returns:
        Items by split and task, and a line for everything that is not at hand.

    """
    items: dict[SplitName, dict[str, Items]] = {split: {} for split in SPLITS}
    unreachable = [f"{field}: {reason}" for field, reason in missing.items()]
    for task, expert in spec.heads.items():
        model = expert if expert == BASE else f"experts.{expert}"
        if model in missing:
            unreachable.append(f"tasks.{task}: cannot be checked without {model}")
            continue
        folder = Path(spec.base if expert == BASE else spec.experts[expert])
        if BASE in missing and (is_adapter(folder) or not has_tokenizer(folder)):
            unreachable.append(f"tasks.{task}: cannot be checked without the base")
            continue
        try:
            for split, found in load_items(spec, task).items():
                items[split][task] = found
        except UnreachableError as error:
            unreachable.append(str(error))
    return items, unreachable
