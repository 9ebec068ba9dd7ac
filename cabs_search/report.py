"""The leaderboard, from what was recorded: nothing is run again, and no number comes from anywhere else.

Terminal, report.html and MLflow show this one value. Rows are compared on the confirm split, which no proposal has
seen; what the search chose and the best baseline are fixed before that split is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from cabs_search.baselines import best_shared, ranked, singles
from cabs_search.inference import Contrast, Panel, Reported, TieSet, as_reported, tie_set
from cabs_search.inference import Scores as OnItems
from cabs_search.metrics import is_quick
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.recipe import Method, Recipe
from cabs_search.sparsify import settings
from cabs_search.spec import Spec, load
from cabs_search.tasks import SPLITS, SplitName

BASELINE, FOUND = "best baseline", "best found"
"""What rows are tested against."""
SIGNIFICANT = 0.05
SEARCH_REPLICATES = 2000
"""Bootstrap samples of the search items, for the optimism."""
Role = Literal["base", "expert", "ideal", "baseline", "candidate"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the leaderboard."""

    label: str
    role: Role
    recipe: dict[str, Any] | None
    """None where the row is no model."""
    key: str | None
    score: float
    """Mean of the tasks' metrics on the confirm split."""
    interval: tuple[float, float]
    """95 %, of this row by itself."""
    simultaneous: tuple[float, float]
    """95 %, of all rows together: in 95 of 100 studies not one of them misses its row's true score."""
    tasks: Mapping[str, float]
    """The metric by task on the confirm split."""
    task_intervals: Mapping[str, tuple[float, float]]
    """95 %, each by itself."""
    losses: Mapping[str, float]
    """Mean loss by task on the confirm split: nats, of a regression the mean squared error."""
    search_score: float | None
    """What it scored on the search split, on which it was chosen: too high for the best of many."""
    text: str
    """The recipe in words."""
    against: Mapping[str, Contrast] = field(default_factory=dict)
    """By BASELINE and FOUND, of candidates and baselines, where the row is not that one itself."""
    tied: bool = False
    """Whether it cannot be told from the best candidate."""


@dataclass(frozen=True, kw_only=True)
class Optimism:
    """By how much the search split flatters the candidate that was chosen on it."""

    search: float
    confirm: float
    estimate: float
    """search - confirm; a part of it is that the splits' items differ."""
    interval: tuple[float, float]
    """95 %."""
    expected: float | None
    """What choosing the best of so many by so few items adds, by bootstrap; None where that would take minutes."""
    text: str


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A candidate with every search item scored."""

    place: int
    """In the order they were completed, from 1."""
    key: str
    text: str
    method: str
    amount: str
    """n:m or density; empty where the method has neither."""
    order: str
    """Pruning order; empty where the method has none."""
    lambdas: Mapping[str, float]
    """By expert, or expert and group."""
    shared: float | None
    """λ where it is one for all."""
    score: float
    tasks: Mapping[str, float]
    items: int
    """Search items scored up to and with this candidate."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a study took."""

    items: Mapping[str, int]
    """Scored, by split."""
    seconds: Mapping[str, float]
    """By what they were spent on, of all workers together; ``wall`` is the clock's."""
    repeated: int
    """Proposals that were known and not scored again."""
    pruned: int
    """Sets of pruned vectors; all other candidates took one of these from the cache."""
    text: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """What a study found."""

    name: str
    candidates: int
    """Candidates with every search item scored."""
    items: Mapping[str, Mapping[str, int]]
    """Items by split and task."""
    rows: tuple[Row, ...]
    verdict: str
    """In one sentence, whether the best found beats the best baseline."""
    baseline: str | None
    """The label of the best baseline, by search score."""
    tie_set: TieSet | None
    optimism: Optimism | None
    as_reported: tuple[Reported, ...]
    """By method, the top of its search as papers report it."""
    spent: Spent
    tried: tuple[Tried, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no infinity."""
        values: dict[str, Any] = finite(asdict(self))
        return values

    def row(self, label: str) -> Row:
        """A row by its label."""
        return next(row for row in self.rows if row.label == label)


def finite(value: Any) -> Any:
    """Plain values with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def leaderboard(folder: str | Path) -> Leaderboard:
    """Read a study's folder.

    Raises:
        ValueError: nothing is recorded there.

    """
    path = Path(folder)
    if not (path / "spec.yaml").is_file() or not (path / "outcomes" / "outcomes.sqlite").is_file():
        raise ValueError(f"{folder}: holds no study; make one with: cabs-search run SPEC --output {folder}")
    return build(load(path / "spec.yaml", locations=False), Outcomes(path / "outcomes"))


def build(spec: Spec, outcomes: Outcomes) -> Leaderboard:
    """The leaderboard of a study's record."""
    return board_of(spec, Scores.read(spec, outcomes))


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A record, read once."""

    searched: Mapping[str, Scored]
    """By recipe's key, on the search split, in the order they were completed."""
    confirmed: Mapping[str, Scored]
    """By recipe's key, on the confirm split."""
    labels: Mapping[SplitName, Mapping[str, Any]]
    """The items' truth by split and task."""
    clusters: Mapping[SplitName, Mapping[str, npt.NDArray[np.int64]]]
    """Which items stand or fall together, by split and task."""
    spent: Mapping[str, float]
    """See ``Outcomes.spent``; empty for a part of a record."""

    @classmethod
    def read(cls, spec: Spec, outcomes: Outcomes, wanted: Callable[[Recipe], bool] | None = None) -> Scores:
        """All of a record; ``wanted``: or just these recipes, with base and experts, and not what all others took."""
        alone, is_wanted = {recipe.key for recipe in singles(spec).values()}, wanted or (lambda _: True)
        return cls(
            searched=outcomes.scored(spec, "search", is_wanted),
            confirmed=outcomes.scored(spec, "confirm", lambda recipe: recipe.key in alone or is_wanted(recipe)),
            labels={split: outcomes.labels(spec, split) for split in SPLITS},
            clusters={split: outcomes.clusters(spec, split) for split in SPLITS},
            spent=outcomes.spent() if wanted is None else {},
        )

    def panel(self, spec: Spec, found: Mapping[str, Scored], split: SplitName = "confirm", **options: Any) -> Panel:
        """Candidates side by side on a split."""
        on_items = {name: OnItems(tasks=scored.tasks, scores=scored.scores) for name, scored in found.items()}
        return Panel(spec, on_items, self.labels[split], self.clusters[split], **options)


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a row is of, before it is compared."""

    label: str
    role: Role
    scored: Scored
    """On the confirm split; of a virtual row without a recipe of its own."""
    searched: Scored | None = None
    text: str = ""
    is_model: bool = True

    @property
    def key(self) -> str:
        """Its name in a panel; rows of one recipe share it."""
        return self.scored.recipe.key if self.is_model else self.label


def rows_of(lines: Sequence[Line], panel: Panel, tied: Sequence[str], references: Mapping[str, str]) -> list[Row]:
    """Rows with their intervals and tests.

    Args:
        lines: what the rows are of.
        panel: all of them, by key.
        tied: the keys of the tie set.
        references: the keys of what is tested against, by what it is called.

    """
    together = panel.intervals()
    compared = list(dict.fromkeys(line.key for line in lines if line.role in ("baseline", "candidate")))
    against: dict[str, dict[str, Contrast]] = {key: {} for key in compared}
    for name, reference in references.items():
        others = [key for key in compared if key != reference]
        for key, contrast in zip(others, panel.contrasts([(key, reference) for key in others]), strict=True):
            against[key][name] = contrast
    return [
        Row(
            label=line.label,
            role=line.role,
            recipe=line.scored.recipe.as_dict() if line.is_model else None,
            key=line.key if line.is_model else None,
            score=line.scored.score,
            interval=panel.own_interval(line.key),
            simultaneous=together[line.key],
            tasks=dict(line.scored.scores),
            task_intervals={task: panel.own_interval(line.key, task) for task in line.scored.scores},
            losses=line.scored.losses,
            search_score=line.searched.score if line.searched else None,
            text=line.text,
            against=against.get(line.key, {}),
            tied=line.key in tied,
        )
        for line in lines
    ]


def lines_alone(spec: Spec, confirmed: Mapping[str, Scored]) -> list[Line]:
    """Base, experts and, where all of these are confirmed, the ideal."""
    alone = {label: confirmed[recipe.key] for label, recipe in singles(spec).items() if recipe.key in confirmed}
    lines = [Line(label=name, role="base" if name == "base" else "expert", scored=s) for name, s in alone.items()]
    owners = {task: alone.get(f"expert {spec.expert_of(task)}") for task in spec.tasks}
    found = {task: scored for task, scored in owners.items() if scored is not None}
    if len(found) == len(owners):
        virtual = replace(
            next(iter(found.values())),
            tasks={task: scored.tasks[task] for task, scored in found.items()},
            scores={task: scored.scores[task] for task, scored in found.items()},
        )
        text = "each task by its own expert (no model)"
        lines.append(Line(label="ideal", role="ideal", scored=virtual, text=text, is_model=False))
    return lines


def board_of(spec: Spec, scores: Scores) -> Leaderboard:
    """The leaderboard from scores."""
    searched, confirmed = scores.searched, scores.confirmed
    shared = [s for s in best_shared(spec, searched).values() if s.recipe.key in confirmed]
    top = ranked(searched.values())[: spec.search.confirm]
    found = [s for s in top if s.recipe.key in confirmed]
    lines = lines_alone(spec, confirmed)
    named: list[tuple[str, Role, Scored]] = [(f"best shared-λ {s.recipe.method.name}", "baseline", s) for s in shared]
    named += [(FOUND if s is top[0] else f"found #{top.index(s) + 1}", "candidate", s) for s in found]
    for name, role, one in named:
        own, text = confirmed[one.recipe.key], str(one.recipe)
        lines.append(Line(label=name, role=role, scored=own, searched=one, text=text))
    panel = scores.panel(spec, {line.key: line.scored for line in lines})
    best = {BASELINE: ranked(shared)[:1], FOUND: [s for s in found if s is top[0]]}
    references = {name: of[0].recipe.key for name, of in best.items() if of}
    ties = tie_set(panel, list(dict.fromkeys(one.recipe.key for one in [*found, *shared])))
    rows = rows_of(lines, panel, ties.labels if ties else (), references) if lines else []
    labels = {line.key: line.label for line in reversed(lines)}
    return Leaderboard(
        name=spec.name,
        candidates=len(searched),
        items={split: {t: len(scores.labels[split][t]) for t in spec.tasks} for split in SPLITS},
        rows=tuple(rows),
        verdict=_verdict(rows, {name: labels[key] for name, key in references.items()}),
        baseline=labels.get(references.get(BASELINE, "")),
        tie_set=replace(ties, labels=tuple(labels[key] for key in ties.labels)) if ties else None,
        optimism=_optimism(spec, scores, panel, references.get(FOUND)),
        as_reported=as_reported(_by_method(searched), spec.search.confirm),
        spent=spent_of(scores),
        tried=tuple(_tried(spec, scores)),
    )


def _by_method(searched: Mapping[str, Scored]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for scored in searched.values():
        found.setdefault(scored.recipe.method.name, []).append(scored.score)
    return found


def _optimism(spec: Spec, scores: Scores, panel: Panel, key: str | None) -> Optimism | None:
    """Of the candidate that was chosen; None where none is confirmed yet."""
    if key is None:
        return None
    before, after = scores.searched[key].score, scores.confirmed[key].score
    few = is_quick_of(spec)
    pool = dict(scores.searched) if few else {key: scores.searched[key]}
    on_search = scores.panel(spec, pool, "search", replicates=SEARCH_REPLICATES)
    error = math.hypot(on_search.standard_error(key), panel.standard_error(key))
    margin = float(stats.norm.ppf(0.975)) * error
    expected = on_search.selection_bias() if few else None
    low, high = before - after - margin, before - after + margin
    text = (
        f"What the search items chose scored {before:.4f} on them and {after:.4f} on fresh ones: "
        f"{100 * (before - after):+z.1f} points of optimism [{100 * low:+z.1f}, {100 * high:+z.1f}]"
    )
    if expected is not None:
        text += f"; choosing the best of {len(pool)} by {on_search.items:,} items is expected to add about "
        text += f"{100 * expected:.1f}"
    return Optimism(
        search=before, confirm=after, estimate=before - after, interval=(low, high), expected=expected, text=f"{text}."
    )


def is_quick_of(spec: Spec) -> bool:
    """Whether all metrics can be resampled for every candidate of a search."""
    return all(is_quick(task) for task in spec.tasks.values())


def _tried(spec: Spec, scores: Scores) -> list[Tried]:
    items, found = 0, []
    for place, (key, scored) in enumerate(scores.searched.items(), 1):
        items += scored.items
        recipe = scored.recipe
        found.append(
            Tried(
                place=place,
                key=key,
                text=str(recipe),
                method=recipe.method.name,
                amount=amount_of(recipe.method),
                order=">".join(recipe.order) if recipe.method.has_order else "",
                lambdas=dict(recipe.lambdas),
                shared=recipe.lambdas[0][1] if recipe.is_shared else None,
                score=scored.score,
                tasks={task: scored.scores[task] for task in spec.tasks},
                items=items,
            )
        )
    return found


def amount_of(method: Method) -> str:
    """What a method keeps, as it is written: n:m or density."""
    known = settings(method.mask)
    return str(method).removeprefix(method.name).split(" ")[1] if {"nm", "density"} & set(known) else ""


def spent_of(scores: Scores) -> Spent:
    """What was spent, from the record."""
    items = {"search": sum(s.items for s in scores.searched.values())}
    items |= {"confirm": sum(s.items for s in scores.confirmed.values())}
    known = dict(scores.spent)
    repeated = int(known.pop("repeated", 0))
    methods = {s.recipe.method for s in scores.searched.values()}
    text = [f"{items['search']:,} items scored in the search, {items['confirm']:,} to confirm."]
    if "wall" in known:
        workers = ", ".join(f"{what} {_duration(known[what])}" for what in known if what != "wall")
        text.append(f"{_duration(known['wall'])} in all; of all workers together: {workers}.")
    if len(methods) < len(scores.searched):
        text.append(
            f"{len(methods)} sets of pruned vectors served {len(scores.searched)} candidates: all but the "
            "first of each found theirs in the cache."
        )
    if repeated:
        per = sum(len(of) for of in scores.labels["search"].values())
        text.append(f"{repeated} proposals were known: {repeated * per:,} items not scored again.")
    return Spent(items=items, seconds=known, repeated=repeated, pruned=len(methods), text=tuple(text))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _verdict(rows: Sequence[Row], best: Mapping[str, str]) -> str:
    """Whether the best found beats the best baseline, in one sentence."""
    named = {row.label: row for row in rows}
    if FOUND not in best:
        return "No candidate is confirmed yet."
    found, name = named[FOUND], best.get(BASELINE)
    if name is None:
        return f"The best found scores {found.score:.4f} on fresh items; the spec names no baseline."
    baseline = named[name]
    if baseline.key == found.key:
        return f"Nothing searched beats the {name}, which is the best found ({found.score:.4f} on fresh items)."
    contrast = found.against[BASELINE]
    if contrast.p_holm < SIGNIFICANT:
        verb = "beats" if contrast.estimate > 0 else "is worse than"
    else:
        verb = "cannot be told from"
    return (
        f"The best found ({found.score:.4f} on fresh items) {verb} the {name} ({baseline.score:.4f}): "
        f"{in_points(contrast)}."
    )


def in_points(contrast: Contrast) -> str:
    """A contrast in words: points, simultaneous interval, adjusted p."""
    low, high = (100 * end for end in contrast.interval)
    p_value = as_p(contrast.p_holm)
    equals = "" if p_value.startswith("<") else "= "
    return f"{100 * contrast.estimate:+z.1f} points [{low:+z.1f}, {high:+z.1f}], p {equals}{p_value}"


def as_p(p_value: float) -> str:
    """A p-value with two digits; of permutations none is under their number's inverse."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def as_text(board: Leaderboard) -> str:
    """The leaderboard for a terminal."""
    if not board.rows:
        return (
            f"{board.name}: {board.candidates} candidates so far, no row confirmed yet; run the same command to go on"
        )
    tasks = list(board.items["confirm"])
    head = ["", "confirm", "95 % interval", "tied", "to best baseline", "p", *tasks, "search", "recipe"]
    lines = [[*_cells(row), *(f"{row.tasks[t]:.3f}" for t in tasks), *_origin(row)] for row in board.rows]
    count = {split: sum(board.items[split].values()) for split in board.items}
    title = (
        f"{board.name}: {board.candidates} candidates on {count['search']} search items; these rows on "
        f"{count['confirm']} confirm items that no proposal has seen"
    )
    notes = [board.verdict]
    notes += [of.text for of in (board.tie_set, board.optimism) if of is not None]
    return "\n".join([title, "", *table([head, *lines]), "", NOTE, "", *notes, *board.spent.text])


NOTE = (
    "Intervals hold for all rows together (max-t bootstrap over items); p: paired permutation test, Holm's correction; "
    "tied (*): in the set that holds the best candidate in 95 of 100 studies."
)


def _cells(row: Row) -> list[str]:
    contrast = row.against.get(BASELINE)
    low, high = row.simultaneous
    distance, p_value = "", ""
    if contrast is not None:
        distance = (
            f"{100 * contrast.estimate:+z.1f} [{100 * contrast.interval[0]:+z.1f}, {100 * contrast.interval[1]:+z.1f}]"
        )
        p_value = as_p(contrast.p_holm)
    return [row.label, f"{row.score:.4f}", f"[{low:.3f}, {high:.3f}]", "*" if row.tied else "", distance, p_value]


def _origin(row: Row) -> list[str]:
    return ["" if row.search_score is None else f"{row.search_score:.4f}", row.text]


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
