"""Write a searched candidate as a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.chunks import keep_memory
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.recipe import Recipe
from cabs_search.record.comparison_file import is_comparison
from cabs_search.record.entries import Scored
from cabs_search.record.folder import StudyFolder, StudyId
from cabs_search.record.outcomes import Outcomes
from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from cabs_search.results.read_comparison import best_of
from cabs_search.results.scores import RecordScores
from cabs_search.scoring.calibrate import calibrated
from cabs_search.search.candidates import ensemble_recipes, ranked
from cabs_search.serving.export import export
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import load_study_items


def export_trial(
    folder: str | Path, trial: str, to: str | Path, *, adapter: int | Literal["exact"] | None = None
) -> tuple[Recipe, Path]:
    """Write a searched candidate as a checkpoint.

    Args:
        folder: the folder of a study or a comparison.
        trial: ``best`` (what the search recommends, else the best search score), or a candidate's
            number as Optuna and MLflow count; of a comparison ``best``, or a row's label.
        to: a new or an empty folder.
        adapter: as of ``serving.export.export``.

    Returns:
        The candidate's recipe and the folder.

    Raises:
        ValueError: no such study or candidate; ``to`` is not empty; the merge is no adapter.

    """
    import torch

    keep_memory()
    board, study = read_leaderboard(folder), StudyFolder(Path(folder))
    spec = load(study.spec, data=False)
    chosen = _chosen(spec, study, trial)
    family = Family.open(spec.base, spec.experts, spec.vocabulary, spec.pickled)
    return chosen.recipe, export(
        family,
        chosen.recipe,
        to,
        heads=spec.heads,
        facts=card_facts(board, chosen),
        dtype=getattr(torch, spec.dtype),
        vectors=scored_vectors(spec, family, chosen.recipe),
        adapter=adapter,
    )


def _chosen(spec: Spec, study: StudyFolder, trial: str) -> Scored:
    if trial in (ensembles := ensemble_recipes(spec)):
        raise ValueError(f"--trial: {trial} is no single model: it is the {ensembles[trial]}")
    outcomes = Outcomes(study.outcomes, spec.tasks, must_exist=True)
    scores = RecordScores.read(outcomes, spec)
    searched, refinement = scores.searched, scores.refinement
    if not searched:
        raise ValueError(f"{study.path}: no candidate is scored yet")
    if trial == "best":
        refined = refinement.kept[-1].key if refinement and refinement.kept else ""
        if refined in searched:
            return searched[refined]
        recommended = outcomes.recommended()
        if recommended is not None and recommended.recipe.key in searched:
            return searched[recommended.recipe.key]
        return ranked(s for key, s in searched.items() if key not in scores.refined_keys)[0]
    if is_comparison(study.path):
        return searched[best_of(study.path, trial)]
    from cabs_search.search.storage import recipe_key_of_trial

    key = recipe_key_of_trial(
        study.path, spec.search.storage, spec.name, StudyId(outcomes.study_id()), trial
    )
    if key is None or key not in searched:
        raise ValueError(f"--trial: candidate {trial} has no complete score in {study.path}")
    return searched[key]


def scored_vectors(
    spec: Spec, family: Family, recipe: Recipe, items: Mapping[str, Items] | None = None
) -> dict[str, StoredVector] | None:
    """Return the cached vectors that were scored, if their rule needs calibration items.

    Args:
        spec: the study.
        family: its models.
        recipe: the candidate.
        items: the search split by task; None: read it if needed.

    Returns:
        Vectors by expert, in pruning order; None for other rules, whose vectors need no items.

    """
    mask = recipe.method.mask
    if not isinstance(mask, CALIBRATED):
        return None
    items = load_study_items(spec)["search"] if items is None else items
    family = calibrated(family, items, [mask], cache_folder(), spec.device)
    cache = VectorCache(cache_folder())
    return cache.open(cache.ensure(family, recipe.method))


def card_facts(board: Leaderboard, chosen: Scored) -> list[str]:
    """Return the lines of the model card on a candidate's scores."""
    facts = [f"- search split: {chosen.score:.4f}"]
    for row in board.rows:
        if row.key == chosen.recipe.key:
            low, high = row.interval
            tasks = ", ".join(f"{task} {value:.4f}" for task, value in row.tasks.items())
            return [*facts, f"- confirm split: {row.score:.4f} [{low:.4f}, {high:.4f}] ({tasks})"]
    return facts
