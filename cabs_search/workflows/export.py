"""Write a searched candidate as a checkpoint."""

from __future__ import annotations

from pathlib import Path

from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyFolder, is_comparison
from cabs_search.record.outcomes import Outcomes, Scored
from cabs_search.results.comparison import best_of
from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from cabs_search.scoring.calibrate import calibrated
from cabs_search.search.candidates import ranked
from cabs_search.serving.export import export
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items


def export_trial(folder: str | Path, trial: str, to: str | Path) -> tuple[Recipe, Path]:
    """Write a searched candidate as a checkpoint.

    Args:
        trial: ``best`` (by search score), or a candidate's number as the study and MLflow count; of
            a comparison
            ``best``, or a row's label.

    Raises:
        ValueError: no such study or candidate; ``to`` is not empty.

    """
    import torch

    board = read_leaderboard(folder)
    own = StudyFolder(Path(folder))
    spec = load(own.spec)
    outcomes = Outcomes(own.outcomes, spec.tasks)
    searched = outcomes.scored("search")
    if not searched:
        raise ValueError(f"{folder}: no candidate is scored yet")
    if trial == "best":
        chosen = ranked(searched.values())[0]
    elif is_comparison(folder):
        chosen = searched[best_of(Path(folder), trial)]
    else:
        from cabs_search.search.storage import recipe_key_of_trial

        key = recipe_key_of_trial(Path(folder), spec.search.storage, spec.name, trial)
        if key not in searched:
            raise ValueError(f"--trial: candidate {trial} has no complete score in {folder}")
        chosen = searched[key]
    family = Family.open(spec.base, spec.experts)
    heads = {task: spec.expert_of(task) for task in spec.tasks}
    dtype = getattr(torch, spec.dtype)
    facts = card_facts(board, chosen)
    vectors = calibrated_vectors(spec, family, chosen.recipe)
    return chosen.recipe, export(
        family, chosen.recipe, to, heads=heads, facts=facts, dtype=dtype, vectors=vectors
    )


def calibrated_vectors(
    spec: Spec, family: Family, recipe: Recipe
) -> dict[str, StoredVector] | None:
    """The very vectors that were scored, where pruning needs calibration items; None where it does
    not.
    """
    mask = recipe.method.mask
    if not isinstance(mask, CALIBRATED):
        return None
    store, family = (
        VectorCache(cache_folder()),
        calibrated(spec, family, load_study_items(spec)["search"], [mask]),
    )
    return store.open(store.ensure(family, recipe.method))


def card_facts(board: Leaderboard, chosen: Scored) -> list[str]:
    facts = [f"- search split: {chosen.score:.4f}"]
    for row in board.rows:
        if row.key == chosen.recipe.key:
            low, high = row.interval
            tasks = ", ".join(f"{task} {value:.4f}" for task, value in row.tasks.items())
            return [*facts, f"- confirm split: {row.score:.4f} [{low:.4f}, {high:.4f}] ({tasks})"]
    return facts
