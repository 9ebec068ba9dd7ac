"""Contents of a finished study's run in MLflow, all of them the leaderboard's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cabs_search.reporting.tables import (
    GAIN,
    SCORED,
    View,
    as_markdown,
    as_values,
    has_early_rows,
    leaderboard_table,
    tests_table,
)
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.rows import BASELINE, FOUND, Row
from cabs_search.results.sampled import Sampled

LEADERBOARD_VALUES: View = (
    *("row", *SCORED, "all_rows", "tied", "task", "search", "objective", "recipe"),
)
TEST_VALUES: View = ("row", "against", *GAIN, "p_holm", "p", "items", "effect")
NOTE_COLUMNS: View = ("row", *SCORED, "all_rows", "tied", "recipe")
MAX_ROWS = 12
"""Rows of the note's leaderboard: a note is a tag, which holds 8,000 characters."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Numbers, tables, files and note of a finished study's run, as plain values."""

    metrics: Mapping[str, float]
    note: str
    """Markdown, shown on the run's page."""
    tables: Mapping[str, Sequence[Mapping[str, Any]]]
    """Rows by the table's name."""
    files: Mapping[str, bytes]
    """Artifacts by path; MLflow finds paths again that are ASCII."""
    front: tuple[str, ...] = ()
    """Keys of the recipes on the Pareto front, if the search had several objectives."""


def summary_of(
    board: Leaderboard, folder: str, files: Mapping[str, bytes], hints: Sequence[str] = ()
) -> Summary:
    """Return what the run of a study says once the study has ended.

    Args:
        board: the study's.
        folder: arguments of ``cabs-search export``: the study's folder, and a comparison's row.
        files: artifacts by path, such as pictures and the report.
        hints: paragraphs for the note.

    """
    texts = {
        "leaderboard.txt": leaderboard_text(board),
        "leaderboard.json": json.dumps(board.as_dict(), indent=2),
    }
    tests = tests_table(((row.label, row) for row in board.rows), BASELINE, FOUND)
    tables = {
        "leaderboard": as_values(leaderboard_table(board), LEADERBOARD_VALUES),
        "significance": as_values(tests, TEST_VALUES),
    }
    if board.sampled:
        tables["sampled"] = [row for one in board.sampled for row in sampled_values(one)]
    return Summary(
        metrics=metrics_of(board),
        note=note_of(board, folder, hints),
        tables=tables,
        files={path: text.encode() for path, text in texts.items()} | dict(files),
        front=board.front,
    )


def metrics_of(board: Leaderboard) -> dict[str, float]:
    """Return the numbers by which studies are compared in MLflow's table of runs."""
    metrics = {"candidates": float(board.candidates)}
    best = board.chosen
    if best is not None:
        low, high = best.simultaneous
        metrics |= {"confirm.score": best.score, "confirm.low": low, "confirm.high": high}
        metrics |= {f"confirm.score.{task}": value for task, value in best.tasks.items()}
        metrics |= {} if best.search_score is None else {"score": best.search_score}
        for one in board.sampled:
            metrics |= _metrics_of_runs(one, best)
    if board.optimism is not None:
        metrics["optimism"] = board.optimism.estimate
    if board.tie_set is not None:
        metrics["tied"] = float(len(board.tie_set.labels))
    return metrics


def _metrics_of_runs(sampled: Sampled, best: Row) -> dict[str, float]:
    row = sampled.row(best.key)
    if row is None:
        return {}
    low, high = row.interval
    name = f"sampled.{sampled.temperature:g}"
    return {f"{name}.score": row.mean, f"{name}.low": low, f"{name}.high": high}


def sampled_values(sampled: Sampled) -> list[dict[str, Any]]:
    """Return sampled runs as plain numbers and texts, differences in points."""
    return [
        {
            "temperature": sampled.temperature,
            "row": row.label,
            "runs": len(row.runs),
            "mean": round(row.mean, 4),
            "low": round(row.interval[0], 4),
            "high": round(row.interval[1], 4),
            "greedy": round(row.greedy, 4),
            "to best baseline": None if row.difference is None else round(100 * row.difference, 2),
            "Welch p": row.welch_p,
        }
        for row in sampled.rows
    ]


def note_of(board: Leaderboard, folder: str, hints: Sequence[str] = ()) -> str:
    """Return the run's description in Markdown: verdict, first rows, how to repeat it."""
    count = sum(board.items["confirm"].values())
    table, chosen = leaderboard_table(board), board.chosen
    rows = [row for row in table.rows if table.value(row, "role") != "expert"][:MAX_ROWS]
    lines = [
        f"**{board.verdict}**",
        *filter(None, [board.objective]),
        *(
            fact.text
            for fact in (board.recommendation, board.refinement, board.tie_set, board.optimism)
            if fact is not None
        ),
        *filter(None, [one.text_of(chosen.key) for one in board.sampled if chosen]),
        (
            f"{board.candidates} candidates were searched; these rows are scored on"
            f" {'up to ' * has_early_rows(board)}{count} items no proposal has seen:"
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
