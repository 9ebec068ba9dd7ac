"""What a finished study's run says in MLflow: numbers, tables and a note, all of them the
leaderboard's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cabs_search.reporting.tables import (
    GAIN,
    View,
    as_markdown,
    as_values,
    leaderboard_table,
    tests_table,
)
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import BASELINE, FOUND

LEADERBOARD_VALUES: View = ("row", "score", "all_rows", "tied", "task", "search", "recipe")
TEST_VALUES: View = ("row", "against", *GAIN, "p_holm", "p", "items", "effect")
NOTE_COLUMNS: View = ("row", "score", "all_rows", "tied", "recipe")
MOST_ROWS = 12
"""Rows of the note's leaderboard: a note is a tag, which holds 8,000 characters."""


def summary_of(
    board: Leaderboard, folder: str, files: Mapping[str, bytes], hints: Sequence[str] = ()
) -> Summary:
    """Everything that the run of a study says once it has ended.

    Args:
        folder: as ``cabs-search export`` is told it: the study's; of a comparison, with the row.
        files: artifacts by path, such as pictures and the report.
        hints: lines for the note.

    """
    texts = {
        "leaderboard.txt": leaderboard_text(board),
        "leaderboard.json": json.dumps(board.as_dict(), indent=2),
    }
    return Summary(
        metrics=metrics_of(board),
        note=note_of(board, folder, hints),
        tables={"leaderboard": leaderboard_rows(board), "significance": significance_rows(board)},
        files={path: text.encode() for path, text in texts.items()} | dict(files),
    )


def metrics_of(board: Leaderboard) -> dict[str, float]:
    """The numbers by which studies are compared in MLflow's table of runs."""
    metrics = {"candidates": float(board.candidates)}
    best = next((row for row in board.rows if row.label == FOUND), None)
    if best is not None:
        low, high = best.simultaneous
        metrics |= {"confirm.score": best.score, "confirm.low": low, "confirm.high": high}
        metrics |= {f"confirm.score.{task}": value for task, value in best.tasks.items()}
        metrics |= {} if best.search_score is None else {"score": best.search_score}
    if board.optimism is not None:
        metrics["optimism"] = board.optimism.estimate
    if board.tie_set is not None:
        metrics["tied"] = float(len(board.tie_set.labels))
    return metrics


def leaderboard_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Return the leaderboard as plain numbers; intervals are for all rows together."""
    return as_values(leaderboard_table(board), LEADERBOARD_VALUES)


def significance_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Return every paired test in points; intervals and p are for the whole family."""
    tests = tests_table(((row.label, row) for row in board.rows), BASELINE, FOUND)
    return as_values(tests, TEST_VALUES)


def note_of(board: Leaderboard, folder: str, hints: Sequence[str] = ()) -> str:
    """The run's description: what was found, the first rows, how to come back to it; Markdown."""
    count = sum(board.items["confirm"].values())
    table = leaderboard_table(board)
    rows = [row for row in table.rows if table.value(row, "role") != "expert"][:MOST_ROWS]
    lines = [
        f"**{board.verdict}**",
        *(of.text for of in (board.tie_set, board.optimism) if of is not None),
        (
            f"{board.candidates} candidates were searched; these rows are scored on {count} items"
            " no proposal has seen:"
        ),
        as_markdown(replace(table, rows=tuple(rows)), NOTE_COLUMNS),
        *hints,
        (
            f"To take the best: `cabs-search export {folder} --to PATH`. To search again:"
            " `cabs-search run spec.yaml` with the artifact `spec.yaml` and the versions in the"
            " tags."
        ),
    ]
    return "\n\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a study's run says once the study has ended, as plain values."""

    metrics: Mapping[str, float]
    note: str
    """Markdown, which the run's page shows."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows by the table's name."""
    files: Mapping[str, bytes]
    """Artifacts by their paths, which MLflow finds again where they are ASCII."""
