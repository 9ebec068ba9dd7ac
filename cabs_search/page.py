"""report.html: a study, or a comparison, as one page that opens anywhere, with no network.

Every number is the leaderboard's or the comparison's, which the terminal and MLflow show as well.
"""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from cabs_search import charts, comparison
from cabs_search.charts import between, distance, number
from cabs_search.checkpoint import first_line
from cabs_search.comparison import Comparison
from cabs_search.inference import Reported
from cabs_search.layout import Cell, Facts, Figure, Line, Page, Section, Table, render
from cabs_search.locations import without_passwords
from cabs_search.report import BASELINE, FOUND, Leaderboard, Row, as_p

FILE = "report.html"
VERSIONS_FILE = "versions.json"
PACKAGES = ("cabs-search", "torch", "transformers", "ray", "optuna", "mlflow")
"""Whose versions the page names, beside Python's."""
NOTHING: Cell = ("", "")
INTERVALS = (
    "Thin lines: 95 % intervals that hold for all rows at once. Thick: each row's own. Ideal is no model: each task by "
    "its own expert, what a merge without loss would score. Point at a mark for its numbers."
)
TRADE = "What a merge gains on one task it may lose on another. A task's own expert is the ceiling."
FEWER = "Single tasks have fewer items than the mean of all: point at a mark for its own interval."
MANY_VALUES = f"Every value against every other is drawn of {charts.MOST_NAMES} values at the most."
HEAD = ("score, all at once", "95 %, row by itself")
TESTS = (
    "Paired on the same items; intervals and Holm's p hold for the whole family. Effect: Cohen's d of one item's "
    "difference. The last columns are the same comparison by other tests, none adjusted."
)
PAPERS = (
    "The top of each method's search scores as if they were independent runs. They are neighbours, chosen by the very "
    "items they are scored on: these intervals are too narrow and these p too small. Shown only to set beside papers."
)


def write(found: Leaderboard | Comparison, folder: Path) -> Path:
    """Write a folder's page, which appears whole or not at all; its path.

    Raises:
        RuntimeError: it cannot be made or written, for whatever reason: what it is made from has cost more than it.

    """
    try:
        page = comparison_page(found, folder) if isinstance(found, Comparison) else study_page(found, folder)
        return _replace(folder / FILE, render(page))
    except Exception as error:
        raise RuntimeError(f"{folder / FILE} could not be written: {first_line(error)}") from error


def _replace(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}")
    try:
        temporary.write_text(text, encoding="utf-8")
        return temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def study_page(board: Leaderboard, folder: Path) -> Page:
    """A study's page."""
    made = (_leaderboard, _ties, _tasks, _lambdas, _orders, _spent, _optimism)
    return Page(
        name=board.name,
        kind="search report",
        verdict=board.verdict,
        remarks=() if board.tie_set is None else (board.tie_set.text,),
        figures=_figures(board),
        sections=tuple(section for section in (make(board) for make in made) if section is not None),
        facts=facts_of(folder),
    )


def _figures(board: Leaderboard) -> tuple[Cell, ...]:
    figures = []
    if (found := _row(board, FOUND)) is not None:
        figures.append(
            (number(found.score), f"the best found, on fresh items; 95 % {_unbroken(between(found.simultaneous))}")
        )
        if (contrast := found.against.get(BASELINE)) is not None:
            points, interval = distance(contrast)
            figures.append((points, f"points to the best baseline; 95 % {_unbroken(interval)}"))
    if board.tie_set is not None:
        tied = f"{len(board.tie_set.labels)} of {board.tie_set.of}"
        figures.append((tied, "confirmed candidates cannot be told from the best of them"))
    figures.append((f"{board.candidates:,}", f"candidates searched, each on {_count(board, 'search'):,} items"))
    return tuple(figures)


def _unbroken(interval: str) -> str:
    return interval.replace(" ", "\u00a0")


def _row(board: Leaderboard, label: str) -> Row | None:
    return next((row for row in board.rows if row.label == label), None)


def _count(found: Leaderboard | Comparison, split: str) -> int:
    return sum(found.items[split].values())


def _leaderboard(board: Leaderboard) -> Section:
    if not board.rows:
        text = "No row is confirmed yet; the same command goes on with it."
        return Section(id="leaderboard", title="Leaderboard", texts=(text,))
    names = list(board.items["confirm"])
    head = ("", *HEAD, *names, "search", "to best baseline", "p (Holm)")
    lines = tuple(_line(row, names) for row in board.rows)
    tests = [_tests(board.rows, reference) for reference in (BASELINE, FOUND)]
    return Section(
        id="leaderboard",
        title="Leaderboard on fresh items",
        texts=(
            f"{board.candidates:,} candidates were scored on {_count(board, 'search'):,} search items. These rows are "
            f"scored on {_count(board, 'confirm'):,} confirm items that no proposal has seen: believe these.",
        ),
        figures=(Figure(specs=(charts.intervals(board),), says="Every row's confirmed score with its intervals"),),
        notes=(INTERVALS,),
        tables=(Table(title="Row by row", head=head, lines=lines, is_open=True), *(t for t in tests if t is not None)),
    )


def _line(row: Row, names: Sequence[str], label: str | None = None) -> Line:
    contrast = row.against.get(BASELINE)
    return Line(
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


def _tests(rows: Sequence[Row], reference: str) -> Table | None:
    """Every test of the rows against one of them, for the statistician."""
    contrasts = [(row, row.against[reference]) for row in rows if reference in row.against]
    if not contrasts:
        return None
    others = list(dict.fromkeys(name for _, contrast in contrasts for name in contrast.tests))
    lines = tuple(
        Line(
            label=(row.label, ""),
            cells=(
                distance(contrast),
                (as_p(contrast.p_value), ""),
                (as_p(contrast.p_holm), ""),
                (f"{contrast.wins} : {contrast.losses}", ""),
                (f"{contrast.effect:+z.3f}".replace("-", "−"), ""),
                *((as_p(contrast.tests[name]), "") if name in contrast.tests else NOTHING for name in others),
            ),
            tied=row.tied,
        )
        for row, contrast in contrasts
    )
    head = ("", "points", "p", "p (Holm)", "items better : worse", "effect", *others)
    return Table(title=f"Tests against the {reference}", head=head, lines=lines, note=TESTS)


def _ties(board: Leaderboard) -> Section | None:
    if board.tie_set is None:
        return None
    return Section(
        id="ties", title="What cannot be told apart", texts=(board.tie_set.text,), names=board.tie_set.labels
    )


def _tasks(board: Leaderboard) -> Section | None:
    if not board.rows:
        return None
    figures = [Figure(specs=(charts.tasks(board),), says="Every model's metric by task")]
    drawn, reference = charts.trade_offs(board), charts.best_baseline(board)
    if drawn is not None and reference is not None:
        title = f"Points above the best baseline, {reference.text}"
        figures.append(Figure(specs=(drawn,), title=title, says="Each model's gain or loss by task"))
    return Section(id="tasks", title="Task by task", texts=(TRADE,), figures=tuple(figures), notes=(FEWER,))


def _lambdas(board: Leaderboard) -> Section | None:
    shared, each = charts.shared_lambda(board), charts.each_lambda(board)
    figures = []
    if shared is not None:
        title = "One λ for all experts"
        figures.append(Figure(specs=(shared,), title=title, says="The search score against one shared λ by method"))
    if each:
        title = "Every candidate against each expert's λ; the ring is the best"
        says = "The search score of every candidate against each expert's λ"
        figures.append(Figure(specs=tuple(each), title=title, says=says))
    if not figures:
        return None
    text = "A wide basin forgives a rough λ; a narrow one, or a best at its edge, asks for a finer or wider search."
    note = "Scores on the search split. The more a method prunes, the larger is the λ that makes up for it."
    if len(board.tried) > charts.MOST:
        note += f" Of {len(board.tried):,} candidates some are drawn: the best, for a half, and others evenly."
    return Section(id="lambda", title="How much λ matters", texts=(text,), figures=tuple(figures), notes=(note,))


def _orders(board: Leaderboard) -> Section | None:
    drawn = charts.orders(board)
    if drawn is None:
        return None
    text = "The expert that is pruned first chooses its weights first. Each dot is a candidate, each bar their mean."
    note = (
        "Scores on the search split, of candidates that differ in λ as well: a difference of means is no effect of the "
        "order. cabs-search compare SPEC --over order gives each order the same budget, and tests it."
    )
    tried = len({each.order for each in board.tried if each.order})
    if tried > charts.MOST_NAMES:
        note += f" Of {tried:,} orders the {charts.MOST_NAMES} with the highest means are drawn."
    figures = (Figure(specs=(drawn,), says="The search score by pruning order"),)
    return Section(id="orders", title="Pruning orders", texts=(text,), figures=figures, notes=(note,))


def _spent(board: Leaderboard) -> Section:
    drawn = charts.progress(board)
    title, says = "Best score so far against items spent", "The best search score so far against items spent"
    figures = () if drawn is None else (Figure(specs=(drawn,), title=title, says=says),)
    return Section(id="spent", title="What it took", texts=board.spent.text, figures=figures)


def _optimism(board: Leaderboard) -> Section | None:
    if board.optimism is None:
        return None
    drawn = charts.optimism(board)
    title, says = "Confirmed against search score; on the line they are equal", "Confirmed against search scores"
    figures = () if drawn is None else (Figure(specs=(drawn,), title=title, says=says),)
    return Section(
        id="optimism",
        title="How much the search split flatters",
        texts=(board.optimism.text,),
        figures=figures,
        tables=_as_reported(board.as_reported),
    )


def _as_reported(found: Sequence[Reported]) -> tuple[Table, ...]:
    """The papers' statistics, labelled as such."""
    lines = tuple(
        Line(
            label=(one.label, f"top {one.top}"),
            cells=(
                (number(one.mean), between(one.interval)),
                (one.against or "", ""),
                *(
                    NOTHING if t is None or p is None else (f"t = {t:z.2f}".replace("-", "−"), f"p = {p:.2g}")
                    for t, p in ((one.welch_t, one.welch_p), (one.student_t, one.student_p))
                ),
            ),
        )
        for one in found
    )
    head = ("", "mean, 95 % t-interval", "against", "Welch", "Student")
    return (Table(title="As papers report it", head=head, lines=lines, note=PAPERS),) if lines else ()


def comparison_page(found: Comparison, folder: Path) -> Page:
    """A comparison's page."""
    axes = " and ".join(axis.partition("=")[0] for axis in found.over)
    made = (_values, _value_ties, _value_tasks)
    spent = Section(id="spent", title="What it took", texts=found.spent.text, tables=_as_reported(found.as_reported))
    return Page(
        name=found.name,
        kind=f"compared over {axes}",
        verdict=found.headline,
        remarks=(comparison.verdict(found),),
        figures=_value_figures(found),
        sections=(*(section for section in (make(found) for make in made) if section is not None), spent),
        facts=facts_of(folder, *found.over),
    )


def _value_figures(found: Comparison) -> tuple[Cell, ...]:
    rows = [(line.label, line.row) for line in found.lines if line.row is not None]
    figures = []
    if rows:
        label, row = max(rows, key=lambda one: one[1].score)
        figures.append(
            (number(row.score), f"{label}, the highest on fresh items; 95 % {_unbroken(between(row.simultaneous))}")
        )
        if (contrast := row.against.get(BASELINE)) is not None:
            points, interval = distance(contrast)
            figures.append((points, f"points to the best shared-λ Task Arithmetic; 95 % {_unbroken(interval)}"))
    if found.tie_set is not None:
        tied = f"{len(found.tie_set.labels)} of {found.tie_set.of}"
        figures.append((tied, "cannot be told from the best of them"))
    each = _count(found, "search")
    candidates = found.spent.items["search"] // each  # what two values have in common was scored once
    figures.append((f"{candidates:,}", f"candidates searched, each on {each:,} items"))
    return tuple(figures)


def _values(found: Comparison) -> Section:
    names, drawn = list(found.items["confirm"]), charts.compared(found)
    lines = [_line(row, names) for row in found.alone]
    if found.reference is not None:
        lines.append(_line(found.reference, names, charts.SHARED_TA))
    lines += [_value_line(line, names) for line in found.lines]
    head = ("", *HEAD, *names, "search", "to best shared TA", "p (Holm)")
    labelled = [replace(line.row, label=line.label) for line in found.lines if line.row is not None]
    tests = _tests(labelled, BASELINE)
    says = "Each value's best candidate with its intervals"
    return Section(
        id="values",
        title="Value by value on fresh items",
        texts=(
            "Each value had the same budget. Its row is the best of its candidates by their search scores, scored on "
            f"{_count(found, 'confirm'):,} confirm items that no proposal has seen.",
        ),
        figures=(*(() if drawn is None else (Figure(specs=(drawn,), says=says),)), *_crossed(found)),
        notes=(INTERVALS, *found.notes),
        tables=(
            Table(title="Row by row", head=head, lines=tuple(lines), is_open=True),
            *([replace(tests, title="Tests against the best shared-λ Task Arithmetic")] if tests else []),
        ),
    )


def _crossed(found: Comparison) -> tuple[Figure, ...]:
    drawn = charts.crossed(found)
    if drawn is None or found.reference is None:
        return ()
    title = f"Points above the best shared-λ Task Arithmetic ({number(found.reference.score)})"
    return (Figure(specs=(drawn,), title=title, says="One axis down, the other across"),)


def _value_line(line: comparison.Line, names: Sequence[str]) -> Line:
    if line.row is None:
        return Line(label=(line.label, f"not run: {line.failure}"), cells=(NOTHING,) * (len(names) + 5))
    return _line(line.row, names, line.label)


def _value_ties(found: Comparison) -> Section | None:
    drawn = charts.matrix(found)
    if found.tie_set is None:
        return None
    title, says = "Points of the row above the column, paired; * told apart", "Every value against every other"
    return Section(
        id="ties",
        title="What cannot be told apart",
        texts=(found.finding,),
        names=found.tie_set.labels,
        figures=() if drawn is None else (Figure(specs=(drawn,), title=title, says=says),),
        notes=(MANY_VALUES,) if drawn is None else (),
    )


def _value_tasks(found: Comparison) -> Section | None:
    drawn = charts.compared_gains(found)
    if drawn is None or found.reference is None:
        return None
    title = f"Points above the best shared-λ Task Arithmetic, {found.reference.text}"
    figures = (Figure(specs=(drawn,), title=title, says="Each value's gain or loss by task"),)
    return Section(id="tasks", title="Task by task", texts=(TRADE,), figures=figures, notes=(FEWER,))


def facts_of(folder: Path, *over: str) -> Facts:
    """What a folder's study, or comparison ``over`` axes, was made from and with."""
    place = shlex.quote(str(folder))
    axes = "".join(f" --over {shlex.quote(axis)}" for axis in over)
    verb = f"compare spec.yaml{axes}" if over else "run spec.yaml"
    recorded = _recorded(folder)
    spec = without_passwords(yaml.safe_load((folder / "spec.yaml").read_text(encoding="utf-8")))
    return Facts(
        spec=yaml.safe_dump(spec, sort_keys=False, allow_unicode=True),
        commands=(
            f"cabs-search {verb} --output {place}",
            f"cabs-search report {place}",
            f"cabs-search export {place} --to merged",
        ),
        versions=_joined(recorded or [versions()]),
        remark="" if recorded else "What searched is not on record. This page was written with:",
    )


def record_versions(folder: Path) -> None:
    """Keep in a folder what searches it from now on, behind what did before, where that is something else."""
    known, now = _recorded(folder), versions()
    if known[-1:] != [now]:
        _replace(folder / VERSIONS_FILE, json.dumps([*known, now], indent=2) + "\n")


def _recorded(folder: Path) -> list[dict[str, str]]:
    """What searched a folder, as ``versions`` has it, the first one first. Raises ValueError where it is damaged."""
    path = folder / VERSIONS_FILE
    if not path.is_file():
        return []
    try:
        found = [dict(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read: {first_line(error)}; it may be deleted") from error
    return found


def _joined(found: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Versions by name, of which a study that was gone on with may have several."""
    names = dict.fromkeys(name for each in found for name in each)
    return {name: ", then ".join(dict.fromkeys(each[name] for each in found if name in each)) for name in names}


def versions() -> dict[str, str]:
    """Of this program and of what its numbers depend on."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if revision := _git("rev-parse", "--short=12", "HEAD"):
        found["git revision"] = revision + (", with changes" if _git("status", "--porcelain") else "")
    return found


def _git(*arguments: str) -> str:
    """What git says of the working directory; nothing where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, check=False)  # noqa: S607
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
