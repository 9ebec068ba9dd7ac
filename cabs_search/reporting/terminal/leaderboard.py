"""Leaderboard for a terminal."""

from __future__ import annotations

from cabs_search.reporting.tables import LEADERBOARD, as_text, has_early_rows, leaderboard_table
from cabs_search.reporting.terminal.sampled import sampled_text
from cabs_search.results.leaderboard import Leaderboard

NOTE = (
    "Intervals hold for all rows together (max-t bootstrap over items); p: paired permutation test,"
    " Holm's correction; tied (*): in the set that holds the best candidate in 95 of 100 studies."
)
EARLY = (
    " A row with fewer items ended early, as more would change no decision: its score is what it"
    " would have on all items, by those that have them."
)


def leaderboard_text(board: Leaderboard) -> str:
    """Write a leaderboard for a terminal."""
    if not board.rows:
        return (
            f"{board.name}: {board.candidates} candidates so far, no row confirmed yet; run the"
            " same command to go on"
        )
    count = {split: sum(by_task.values()) for split, by_task in board.items.items()}
    has_early = has_early_rows(board)
    title = (
        f"{board.name}: {board.candidates} candidates on {count['search']} search items; these rows"
        f" on {'up to ' * has_early}{count['confirm']} confirm items that no proposal has seen"
    )
    rows = as_text(leaderboard_table(board), LEADERBOARD)
    notes = [board.verdict, *filter(None, [board.objective, board.calibration])]
    parts = (board.recommendation, board.refinement, board.tie_set, board.optimism)
    notes += [part.text for part in parts if part is not None]
    note = NOTE + EARLY * has_early
    runs = [line for one in board.sampled for line in ("", sampled_text(one))]
    return "\n".join([title, "", *rows, "", note, "", *notes, *board.spent.text, *runs])
