"""The leaderboard for a terminal."""

from __future__ import annotations

from cabs_search.common.formats import as_p, table
from cabs_search.results.leaderboard import BASELINE, Leaderboard, Row


def leaderboard_text(board: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    if not board.rows:
        return (
            f"{board.name}: {board.candidates} candidates so far, no row confirmed yet; run the"
            " same command to go on"
        )
    tasks = list(board.items["confirm"])
    head = [
        "",
        "confirm",
        "95 % interval",
        "tied",
        "to best baseline",
        "p",
        *tasks,
        "search",
        "recipe",
    ]
    lines = [
        [*_cells(row), *(f"{row.tasks[t]:.3f}" for t in tasks), *_origin(row)] for row in board.rows
    ]
    count = {split: sum(board.items[split].values()) for split in board.items}
    title = (
        f"{board.name}: {board.candidates} candidates on {count['search']} search items; these rows"
        f" on {count['confirm']} confirm items that no proposal has seen"
    )
    notes = [board.verdict]
    notes += [of.text for of in (board.tie_set, board.optimism) if of is not None]
    return "\n".join([title, "", *table([head, *lines]), "", NOTE, "", *notes, *board.spent.text])


NOTE = (
    "Intervals hold for all rows together (max-t bootstrap over items); p: paired permutation test,"
    " Holm's correction; tied (*): in the set that holds the best candidate in 95 of 100 studies."
)


def _cells(row: Row) -> list[str]:
    contrast = row.against.get(BASELINE)
    low, high = row.simultaneous
    distance, p_value = "", ""
    if contrast is not None:
        distance = (
            f"{100 * contrast.estimate:+z.1f} [{100 * contrast.interval[0]:+z.1f},"
            f" {100 * contrast.interval[1]:+z.1f}]"
        )
        p_value = as_p(contrast.p_holm)
    return [
        row.label,
        f"{row.score:.4f}",
        f"[{low:.3f}, {high:.3f}]",
        "*" if row.tied else "",
        distance,
        p_value,
    ]


def _origin(row: Row) -> list[str]:
    return ["" if row.search_score is None else f"{row.search_score:.4f}", row.text]
