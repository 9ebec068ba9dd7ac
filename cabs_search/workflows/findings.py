"""Results of a finished study: its page, and everything that MLflow gets at the end."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cabs_search.common.formats import first_line
from cabs_search.record.entries import Scored
from cabs_search.reporting.charts.study import pictures
from cabs_search.reporting.html.page import write_page
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.serving.export import compact_bytes, export
from cabs_search.serving.predictor import write_tasks
from cabs_search.tasks.dataset import read_dataset
from cabs_search.tracking.background import Say
from cabs_search.tracking.summary import summary_of
from cabs_search.workflows.export import card_facts, scored_vectors
from cabs_search.workflows.prepare import Prepared

if TYPE_CHECKING:
    from cabs_search.tracking.models import Model
    from cabs_search.tracking.summary import Summary


MOST_MODEL_BYTES = 2_000_000_000
"""Size of the largest model that is logged with ``tracking.model: auto``."""


def write_study_page(results: Leaderboard | Comparison, folder: Path, say: Say) -> dict[str, bytes]:
    """Write the page and return its content by name; empty if it cannot be written."""
    try:
        page = write_page(results, folder)
        return {page.name: page.read_bytes()}
    except (RuntimeError, OSError) as error:
        say(first_line(error))
        return {}


def study_files(board: Leaderboard, folder: Path, say: Say) -> dict[str, bytes]:
    """Return a study's page and its pictures by name, as far as they can be made."""
    files = write_study_page(board, folder, say)
    try:
        return files | {f"pictures/{name}.png": drawn for name, drawn in pictures(board).items()}
    except Exception as error:
        say(f"the charts could not be drawn as pictures: {first_line(error)}")
        return files


def findings(
    prepared: Prepared,
    board: Leaderboard,
    best: Scored | None,
    files: Mapping[str, bytes],
    *,
    row: str = "",
) -> tuple[Summary, Model | None]:
    """Collect what MLflow gets at the end of a study.

    Args:
        prepared: the study, or the comparison that it is a row of.
        board: the study's leaderboard.
        best: the candidate to log as a model, if the spec wants one and it is not too large.
        files: the page and the pictures, by name.
        row: label of a comparison's row.

    """
    import torch

    spec = prepared.spec
    dtype = getattr(torch, spec.dtype)
    stack = best.recipe.stack if best is not None else ()
    size = compact_bytes(prepared.family, spec.heads.values(), dtype, stack)
    if spec.tracking.model == "never":
        best = None
    hints = []
    if best is not None and spec.tracking.model == "auto" and size > MOST_MODEL_BYTES:
        best = None
        hints.append(
            f"The best found takes {size / 1e9:.1f} GB and is not logged as a model unasked"
            " (`tracking: {model: always}` does); the export below writes it."
        )
    folder = shlex.quote(str(prepared.folder)) + (f" --trial {shlex.quote(row)}" if row else "")
    model = None if best is None else _model(prepared, board, best)
    return summary_of(board, folder, files, hints), model


def _model(prepared: Prepared, board: Leaderboard, best: Scored) -> Model:
    import torch

    from cabs_search.tracking.models import Model

    spec, family, recipe = prepared.spec, prepared.family, best.recipe

    def write(to: Path) -> None:
        export(
            family,
            recipe,
            to,
            heads=spec.heads,
            facts=card_facts(board, best),
            dtype=getattr(torch, spec.dtype),
            vectors=scored_vectors(spec, family, recipe, prepared.items["search"]),
            compact=True,
        )
        write_tasks(spec.tasks, to)

    def example() -> dict[str, Any]:
        name, task = next(iter(spec.tasks.items()))
        if task.dataset.harness:  # its documents are not rows of these columns
            listed = [c for c in task.input_columns if task.kind.reads_lists(task, c)]
            texts: dict[str, Any] = dict.fromkeys(task.input_columns, "The sky is")
            return texts | {column: ["blue", "green"] for column in listed}
        row = read_dataset(f"tasks.{name}", task, task.search.split or task.split)[0]
        return {column: row[column] for column in task.input_columns}

    return Model(key=recipe.key, text=str(recipe), tasks=spec.tasks, write=write, example=example)
