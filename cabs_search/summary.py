"""What a finished study's run says in MLflow: numbers, tables and a note, all of them the leaderboard's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cabs_search import report
from cabs_search.report import Leaderboard, Row
from cabs_search.tracking import Summary

MOST_ROWS = 12
"""Rows of the note's leaderboard: a note is a tag, which MLflow cuts at 8,000 characters."""


def summary_of(board: Leaderboard, folder: str, files: Mapping[str, bytes], hints: Sequence[str] = ()) -> Summary:
    """Everything that the run of a study says once it has ended.

    Args:
        folder: as ``cabs-search export`` is told it: the study's; of a comparison, with the row.
        files: artifacts by path, such as pictures and the report.
        hints: lines for the note.

    """
    texts = {"leaderboard.txt": report.as_text(board), "leaderboard.json": json.dumps(board.as_dict(), indent=2)}
    return Summary(
        metrics=metrics_of(board),
        note=note_of(board, folder, hints),
        tables={"leaderboard": leaderboard_rows(board), "significance": significance_rows(board)},
        files={path: text.encode() for path, text in texts.items()} | dict(files),
    )


def metrics_of(board: Leaderboard) -> dict[str, float]:
    """The numbers by which studies are compared in MLflow's table of runs."""
    metrics = {"candidates": float(board.candidates)}
    if (best := _best(board)) is None:
        return metrics
    low, high = best.interval
    metrics |= {"confirm.score": best.score, "confirm.low": low, "confirm.high": high}
    metrics |= {f"confirm.score.{task}": value for task, value in best.tasks.items()}
    if best.search_score is not None:
        metrics |= {"score": best.search_score, "optimism": best.search_score - best.score}
    return metrics


def leaderboard_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """The leaderboard, a row each, with plain numbers."""
    return [
        {
            "row": row.label,
            "confirm": _rounded(row.score),
            "low": _rounded(row.interval[0]),
            "high": _rounded(row.interval[1]),
            **{task: _rounded(value) for task, value in row.tasks.items()},
            "search": _rounded(row.search_score),
            "recipe": row.text,
        }
        for row in board.rows
    ]


def significance_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """The paired tests, a row each."""
    return [
        {
            "row": "best found",
            "against": label,
            "points": _rounded(100 * found["estimate"], 2),
            "low": _rounded(100 * found["interval"][0], 2),
            "high": _rounded(100 * found["interval"][1], 2),
            "p": _rounded(found["p_value"]),
        }
        for label, found in board.comparisons.items()
    ]


def note_of(board: Leaderboard, folder: str, hints: Sequence[str] = ()) -> str:
    """The run's description: what was found, the first rows, how to come back to it; Markdown."""
    rows = [
        f"| {row.label} | {row.score:.4f} | {row.interval[0]:.3f} to {row.interval[1]:.3f} | {row.text} |"
        for row in board.rows[:MOST_ROWS]
    ]
    count = sum(board.items["confirm"].values())
    lines = [
        *(f"**{verdict}**" if i == 0 else verdict for i, verdict in enumerate(board.verdicts)),
        f"{board.candidates} candidates were searched; these rows are scored on {count} items no proposal has seen:",
        "\n".join(["| | confirm | 95 % interval | recipe |", "|---|---|---|---|", *rows]),
        *hints,
        f"To take the best: `cabs-search export {folder} --to PATH`. "
        "To search again: `cabs-search run spec.yaml`, with the artifact `spec.yaml` and the versions in the tags.",
    ]
    return "\n\n".join(lines)


def _best(board: Leaderboard) -> Row | None:
    return next((row for row in board.rows if row.label == "best found"), None)


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
