"""Contents of a finished study's run in MLflow, all of them the leaderboard's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import FOUND, Leaderboard, Row

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
    return Summary(
        metrics=metrics_of(board),
        note=note_of(board, folder, hints),
        tables={"leaderboard": leaderboard_rows(board), "significance": significance_rows(board)},
        files={path: text.encode() for path, text in texts.items()} | dict(files),
    )


def metrics_of(board: Leaderboard) -> dict[str, float]:
    """Return the numbers by which studies are compared in MLflow's table of runs."""
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
    """Return the leaderboard as plain numbers; intervals are simultaneous over all rows."""
    return [
        {
            "row": row.label,
            "confirm": _rounded(row.score),
            "low": _rounded(row.simultaneous[0]),
            "high": _rounded(row.simultaneous[1]),
            "tied": "*" if row.tied else "",
            **{task: _rounded(value) for task, value in row.tasks.items()},
            "search": _rounded(row.search_score),
            "recipe": row.text,
        }
        for row in board.rows
    ]


def significance_rows(board: Leaderboard) -> list[dict[str, Any]]:
    """Return every paired test, in points; intervals and p are of the whole family."""
    return [
        {
            "row": row.label,
            "against": name,
            "points": _rounded(100 * test.estimate, 2),
            "low": _rounded(100 * test.interval[0], 2),
            "high": _rounded(100 * test.interval[1], 2),
            "p (Holm)": _rounded(test.p_holm),
            "p": _rounded(test.p_value),
            "wins": test.wins,
            "losses": test.losses,
            "effect": _rounded(test.effect, 3),
        }
        for row in board.rows
        for name, test in row.against.items()
    ]


def note_of(board: Leaderboard, folder: str, hints: Sequence[str] = ()) -> str:
    """Return the run's description in Markdown: verdict, first rows, how to repeat it."""
    count = sum(board.items["confirm"].values())
    head = ["| | confirm | 95 % interval | tied | recipe |", "|---|---|---|---|---|"]
    lines = [
        f"**{board.verdict}**",
        *(fact.text for fact in (board.tie_set, board.optimism) if fact is not None),
        (
            f"{board.candidates} candidates were searched; these rows are scored on {count} items"
            " no proposal has seen:"
        ),
        "\n".join([*head, *map(_line, _shown(board.rows))]),
        *hints,
        (
            f"To take the best: `cabs-search export {folder} --to PATH`. To search again:"
            " `cabs-search run spec.yaml` with the artifact `spec.yaml` and the versions in the"
            " tags."
        ),
    ]
    return "\n\n".join(lines)


def _shown(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the first rows, the best found among them."""
    return [row for row in rows if row.role != "expert"][:MAX_ROWS]


def _line(row: Row) -> str:
    low, high = row.simultaneous
    # Stays on one line.
    interval = f"{low:.3f} to {high:.3f}".replace(" ", "\u00a0")
    tied = "\\*" if row.tied else ""
    return f"| {row.label} | {row.score:.4f} | {interval} | {tied} | {row.text} |"


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)
