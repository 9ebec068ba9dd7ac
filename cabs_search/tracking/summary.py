"""What a finished study's run says in MLflow: numbers, tables and a note, all of them the
leaderboard's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.leaderboard import FOUND, Leaderboard, Row

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
    """The leaderboard, a row each, with plain numbers; intervals are of all rows together."""
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
    """Every paired test, a row each, in points; intervals and p are of the whole family."""
    return [
        {
            "row": row.label,
            "against": name,
            "points": _rounded(100 * found.estimate, 2),
            "low": _rounded(100 * found.interval[0], 2),
            "high": _rounded(100 * found.interval[1], 2),
            "p (Holm)": _rounded(found.p_holm),
            "p": _rounded(found.p_value),
            "wins": found.wins,
            "losses": found.losses,
            "effect": _rounded(found.effect, 3),
        }
        for row in board.rows
        for name, found in row.against.items()
    ]


def note_of(board: Leaderboard, folder: str, hints: Sequence[str] = ()) -> str:
    """The run's description: what was found, the first rows, how to come back to it; Markdown."""
    count = sum(board.items["confirm"].values())
    head = ["| | confirm | 95 % interval | tied | recipe |", "|---|---|---|---|---|"]
    lines = [
        f"**{board.verdict}**",
        *(of.text for of in (board.tie_set, board.optimism) if of is not None),
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
    """The first rows, the best found among them."""
    return [row for row in rows if row.role != "expert"][:MOST_ROWS]


def _line(row: Row) -> str:
    low, high = row.simultaneous
    interval = f"{low:.3f} to {high:.3f}".replace(" ", "\u00a0")  # stays on one line
    tied = "\\*" if row.tied else ""
    return f"| {row.label} | {row.score:.4f} | {interval} | {tied} | {row.text} |"


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


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
