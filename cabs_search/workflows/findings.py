"""Hand a study's findings to its page and to MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabs_search.common.formats import first_line
from cabs_search.record.outcomes import Scored
from cabs_search.reporting.charts.study import pictures
from cabs_search.reporting.html.page import write_page
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.serving.export import compact_bytes, export
from cabs_search.serving.predictor import write_tasks
from cabs_search.spec.study import Spec
from cabs_search.tasks.dataset import read_dataset
from cabs_search.tracking.background import Say
from cabs_search.tracking.summary import summary_of
from cabs_search.workflows.export import calibrated_vectors, card_facts
from cabs_search.workflows.prepare import Prepared

if TYPE_CHECKING:
    from cabs_search.tracking.models import Model
    from cabs_search.tracking.summary import Summary


MOST_MODEL_BYTES = 2_000_000_000
"""The largest model that a study's run gets unasked."""


def write_study_page(found: Leaderboard | Comparison, folder: Path, say: Say) -> dict[str, bytes]:
    """Write the page and read it; empty where it cannot be, which costs no result."""
    try:
        written = write_page(found, folder)
        return {written.name: written.read_bytes()}
    except (RuntimeError, OSError) as error:
        say(first_line(error))
        return {}


def study_files(board: Leaderboard, folder: Path, say: Say) -> dict[str, bytes]:
    """A study's page and its pictures, by name, as far as they can be made."""
    files = write_study_page(board, folder, say)
    try:
        return files | {f"pictures/{name}.png": drawn for name, drawn in pictures(board).items()}
    except Exception as error:
        say(f"the charts could not be drawn as pictures: {first_line(error)}")
        return files


def findings(
    opened: Prepared,
    spec: Spec,
    board: Leaderboard,
    best: Scored | None,
    files: Mapping[str, bytes],
    *,
    row: str = "",
) -> tuple[Summary, Model | None]:
    """What MLflow is given at the end.

    Args:
        best: what is logged as a model, where the spec wants one.
        files: the report and its pictures.
        row: of a comparison, the study's.

    """
    import torch

    heads = [spec.expert_of(task) for task in spec.tasks]
    size = compact_bytes(opened.family, heads, getattr(torch, spec.dtype))
    is_large = spec.tracking.model == "auto" and size > MOST_MODEL_BYTES
    is_wanted = best is not None and spec.tracking.model != "never"
    hint = (
        f"The best found takes {size / 1e9:.1f} GB and is not logged as a model unasked (`tracking:"
        " {model: always}` does); the export below writes it."
    )
    folder = shlex.quote(str(opened.folder)) + (f" --trial {shlex.quote(row)}" if row else "")
    summary = summary_of(board, folder, files, [hint] if is_wanted and is_large else [])
    return summary, (
        _model(opened, spec, board, best)
        if best is not None and is_wanted and not is_large
        else None
    )


def _model(opened: Prepared, spec: Spec, board: Leaderboard, best: Scored) -> Model:
    import torch

    from cabs_search.tracking.models import Model

    def write(to: Path) -> None:
        vectors = calibrated_vectors(spec, opened.family, best.recipe)
        heads, dtype = (
            {task: spec.expert_of(task) for task in spec.tasks},
            getattr(torch, spec.dtype),
        )
        facts = card_facts(board, best)
        export(
            opened.family,
            best.recipe,
            to,
            heads=heads,
            facts=facts,
            dtype=dtype,
            vectors=vectors,
            compact=True,
        )
        write_tasks(spec.tasks, to)

    def example() -> dict[str, Any]:
        name, task = next(iter(spec.tasks.items()))
        row = read_dataset(f"tasks.{name}", task, task.search.split or task.split)[0]
        return {column: row[column] for column in task.input_columns}

    recipe = best.recipe
    return Model(key=recipe.key, text=str(recipe), tasks=spec.tasks, write=write, example=example)
