"""Parts that both pages have."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml

from cabs_search.common.formats import as_p, between, number
from cabs_search.common.redact import without_passwords
from cabs_search.common.versions import versions
from cabs_search.record.folder import StudyFolder
from cabs_search.record.versions_file import joined_versions, recorded_versions
from cabs_search.reporting.charts.study import distance
from cabs_search.reporting.html.layout import Cell, Facts, Table, TableRow
from cabs_search.results.as_reported import Reported
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import BASELINE, Leaderboard, Row

NOTHING: Cell = ("", "")
INTERVALS = (
    "Thin lines: 95 % intervals that hold for all rows at once. Thick: each row's own. Ideal is no"
    " model: each task by its own expert, what a merge without loss would score. Point at a mark"
    " for its numbers."
)
TRADE = "What a merge gains on one task it may lose on another. A task's own expert is the ceiling."
FEWER = "Single tasks have fewer items than the mean of all: point at a mark for its own interval."
HEAD = ("score, all at once", "95 %, row by itself")
TESTS = (
    "Paired on the same items; intervals and Holm's p hold for the whole family. Effect: Cohen's d"
    " of one item's difference. The last columns are the same comparison by other tests, none"
    " adjusted."
)
PAPERS = (
    "The top of each method's search scores as if they were independent runs. They are neighbours,"
    " chosen by the very items they are scored on: these intervals are too narrow and these p too"
    " small. Shown only to set beside papers."
)


def unbroken(interval: str) -> str:
    return interval.replace(" ", "\u00a0")


def item_count(found: Leaderboard | Comparison, split: str) -> int:
    return sum(found.items[split].values())


def board_row(row: Row, names: Sequence[str], label: str | None = None) -> TableRow:
    contrast = row.against.get(BASELINE)
    return TableRow(
        label=(label or row.label, row.text),
        cells=(
            (number(row.score), between(row.simultaneous)),
            (between(row.interval), ""),
            *((f"{row.tasks[name]:z.3f}", "") for name in names),
            (number(row.search_score), ""),
            NOTHING if contrast is None else distance(contrast),
            NOTHING if contrast is None else (as_p(contrast.p_holm), ""),
        ),
        tied=row.tied,
        apart=row.role in ("base", "expert", "ideal"),
    )


def tests_table(rows: Sequence[Row], reference: str) -> Table | None:
    """Every test of the rows against one of them, for the statistician."""
    contrasts = [(row, row.against[reference]) for row in rows if reference in row.against]
    if not contrasts:
        return None
    others = list(dict.fromkeys(name for _, contrast in contrasts for name in contrast.tests))
    lines = tuple(
        TableRow(
            label=(row.label, ""),
            cells=(
                distance(contrast),
                (as_p(contrast.p_value), ""),
                (as_p(contrast.p_holm), ""),
                (f"{contrast.wins} : {contrast.losses}", ""),
                (f"{contrast.effect:+z.3f}".replace("-", "−"), ""),
                *(
                    (as_p(contrast.tests[name]), "") if name in contrast.tests else NOTHING
                    for name in others
                ),
            ),
            tied=row.tied,
        )
        for row, contrast in contrasts
    )
    head = ("", "points", "p", "p (Holm)", "items better : worse", "effect", *others)
    return Table(title=f"Tests against the {reference}", head=head, lines=lines, note=TESTS)


def as_reported_tables(found: Sequence[Reported]) -> tuple[Table, ...]:
    """The papers' statistics, labelled as such."""
    lines = tuple(
        TableRow(
            label=(one.label, f"top {one.top}"),
            cells=(
                (number(one.mean), between(one.interval)),
                (one.against or "", ""),
                *(
                    (
                        NOTHING
                        if t is None or p is None
                        else (f"t = {t:z.2f}".replace("-", "−"), f"p = {p:.2g}")
                    )
                    for t, p in ((one.welch_t, one.welch_p), (one.student_t, one.student_p))
                ),
            ),
        )
        for one in found
    )
    head = ("", "mean, 95 % t-interval", "against", "Welch", "Student")
    return (
        (Table(title="As papers report it", head=head, lines=lines, note=PAPERS),) if lines else ()
    )


def facts_of(folder: Path, *over: str) -> Facts:
    """What a folder's study, or comparison ``over`` axes, was made from and with."""
    place = shlex.quote(str(folder))
    axes = "".join(f" --over {shlex.quote(axis)}" for axis in over)
    verb = f"compare spec.yaml{axes}" if over else "run spec.yaml"
    recorded = recorded_versions(folder)
    spec = without_passwords(yaml.safe_load(StudyFolder(folder).spec.read_text(encoding="utf-8")))
    return Facts(
        spec=yaml.safe_dump(spec, sort_keys=False, allow_unicode=True),
        commands=(
            f"cabs-search {verb} --output {place}",
            f"cabs-search report {place}",
            f"cabs-search export {place} --to merged",
        ),
        versions=joined_versions(recorded or [versions()]),
        remark="" if recorded else "What searched is not on record. This page was written with:",
    )
