"""The same search for each value of something: methods, orders, n:m, densities, or two of these crossed.

Every value is a study of its own with the same budget, over one record, so that all are scored on the same items and
nothing is scored twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cabs_search import report
from cabs_search.baselines import candidate_of, methods_of, ranked
from cabs_search.inference import Contrast, Matrix, Reported, TieSet, as_reported, matrix, tie_set
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.recipe import METHOD_NAMES, Method, split_name
from cabs_search.sparsify import MASKS, check_density, parse_nm, settings
from cabs_search.spec import Baseline, Spec, parse

AXES = ("method", "order", "nm", "density")
FILE = "comparison.yaml"
DENSITIES = (0.1, 0.25, 0.5, 0.75)
"""What is compared where a spec names no densities."""
MOST_METHODS = 5000
"""Methods of a row that are held against those of others."""
MOST_SHARED = 8
"""Values of λ, shared by all experts, that each study begins with where the spec gives none."""
REFERENCE = "task-arithmetic"
TOP = 20
"""Candidates of each value that are reported as papers do."""
WIDEST = 20
"""Values of which a terminal shows every pair."""
MOST_CONFIRMED = 3
"""Candidates of each value that are confirmed: a row is the best of them by search score."""
NOT_YET = "no candidate has been confirmed yet; run the same command to go on"


@dataclass(frozen=True, kw_only=True)
class Value:
    """One row of a comparison."""

    label: str
    """The axes' values, such as ``dare 0.25``."""
    spec: Spec
    """Its own space and budget."""
    same_as: str | None = None
    """The row that is the same study, such as Task Arithmetic at another density."""
    is_reference: bool = False
    """Whether it is no value of an axis, but what all are held against."""


def experiment_name(spec: Spec, over: Sequence[str]) -> str:
    """What a comparison is called in MLflow, and its folder by default."""
    return f"{spec.name}-over-{'-'.join(text.partition('=')[0] for text in over)}"


def values(spec: Spec, over: Sequence[str]) -> list[Value]:
    """The rows of a comparison.

    Args:
        spec: the study.
        over: one or two of ``method``, ``order``, ``nm``, ``density``; ``AXIS=V,V`` names the values to compare, else
            they are the spec's own, all methods, or DENSITIES.

    Raises:
        ValueError: no such axis or value, or a single one.

    """
    axes = [_axis(spec, text) for text in over]
    names = {name for name, _ in axes}
    if not 1 <= len(axes) <= 2 or len(names) < len(axes) or {"nm", "density"} == names:  # which are one thing
        raise ValueError(f"--over: one axis or two different ones are needed, but got {', '.join(over)}")
    found: list[Value] = []
    known: dict[frozenset[Method], str] = {}
    for chosen in itertools.product(*(texts for _, texts in axes)):
        label = " ".join(chosen)
        try:
            own = _with(spec, label, dict(zip((name for name, _ in axes), chosen, strict=True)))
        except ValueError as error:
            raise ValueError(f"--over: {str(error).removeprefix('--over: ')}") from None
        methods = frozenset(itertools.islice(methods_of(own), MOST_METHODS))
        found.append(Value(label=label, spec=own, same_as=known.get(methods)))
        for other, theirs in known.items():
            if methods & other and methods != other:
                raise ValueError(f"--over: {theirs} and {label} are partly the same: {min(map(str, methods & other))}")
        known.setdefault(methods, label)
    if len(known) < 2:
        raise ValueError(
            f"--over: two values at the least are needed, but {', '.join(over)} gives {', '.join(known.values())}"
        )
    if not any(v.label == REFERENCE or REFERENCE in v.spec.space.method for v in found):
        own = _with(spec, REFERENCE, {"method": REFERENCE})
        found.append(Value(label=REFERENCE, spec=own, is_reference=True))
    return found


def _axis(spec: Spec, text: str) -> tuple[str, list[str]]:
    name, given, listed = text.partition("=")
    if name not in AXES:
        raise ValueError(f"--over: one of {', '.join(AXES)} is needed, but got {name}")
    if given:
        return name, [value.strip() for value in listed.split(",") if value.strip()]
    match name:
        case "method":
            return name, list(METHOD_NAMES)
        case "order":
            return name, [">".join(order) for order in spec.orders]
        case "nm":
            return name, [f"{n}:{m}" for n, m in spec.space.nm]
        case _:
            return name, [f"{d:g}" for d in spec.space.density or DENSITIES]


def _with(spec: Spec, label: str, chosen: Mapping[str, str]) -> Spec:
    """A spec whose space is one value of each axis, for the methods on which the axes make a difference."""
    space = spec.space
    for axis, text in chosen.items():
        match axis:
            case "method":
                split_name(text)
                space = space.but(method=(text,))
            case "order":
                space = space.but(order=(_order(spec, text),))
            case "nm":
                space = space.but(nm=(parse_nm(text),), density=None)
            case "density":
                density, block = _density(text), space.nm[0][1]
                if (n := round(density * block)) < 1:
                    raise ValueError(
                        f"--over: density * m >= 1/2 must hold, but got {text} with {space.nm[0][0]}:{block}"
                    )
                space = space.but(density=(density,), nm=((n, block),))
    if "method" not in chosen:
        fields = {"order": {"order"}, "nm": {"nm"}, "density": {"density", "nm"}}
        of_all = set.intersection(*(fields[axis] for axis in chosen))
        fitting = tuple(m for m in space.method if of_all & set(settings(MASKS[split_name(m)[1]])))
        if not fitting:
            raise ValueError(f"{' and '.join(chosen)} makes no difference to {', '.join(space.method)}")
        space = space.but(method=fitting)
    baselines = {m: _shared(spec, m, chosen) for m in space.method}
    search = replace(spec.search, confirm=min(spec.search.confirm, MOST_CONFIRMED))
    return replace(spec, name=f"{spec.name} {label}", space=space, baselines=baselines, search=search)


def _order(spec: Spec, text: str) -> tuple[str, ...]:
    order = tuple(text.split(">"))
    if sorted(order) != sorted(spec.experts):
        raise ValueError(f"--over: an order must name every expert once ({', '.join(spec.experts)}), but got {text}")
    return order


def _density(text: str) -> float:
    try:
        density = float(text)
    except ValueError:
        raise ValueError(f"--over: a density must be a number, but got {text}") from None
    check_density(density)
    return density


def _shared(spec: Spec, method: str, chosen: Mapping[str, str]) -> Baseline:
    """The shared λ that a row begins with: the spec's own, else spread over the method's range."""
    given = spec.baselines.get(method)
    if given is not None:
        amounts = {} if {"nm", "density"} & chosen.keys() else {"nm": given.nm, "density": given.density}
        order = {} if "order" in chosen else {"order": given.order}
        return Baseline(**{"lambda": given.lambda_}, **amounts, **order)  # type: ignore[arg-type]
    most = max(2, min(MOST_SHARED, spec.search.trials // 2))
    return Baseline(**{"lambda": spec.space.range_of(method).grid(most)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What one value came to."""

    label: str
    row: report.Row | None
    """The candidate of it with the best search score; None where there is none."""
    shared: report.Row | None
    """The best with one λ for all experts; None where there is none."""
    candidates: int
    """Scored on the search split."""
    failure: str | None
    """Why there is no row."""
    is_reference: bool = False
    """Whether it is no value of an axis, but what all are held against."""

    @property
    def against(self) -> Contrast | None:
        """Its row against the best shared-λ Task Arithmetic, on the confirm split; None where it is that one."""
        return self.row.against.get(report.BASELINE) if self.row else None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison found."""

    name: str
    over: tuple[str, ...]
    items: Mapping[str, Mapping[str, int]]
    """Items by split and task."""
    alone: tuple[report.Row, ...]
    """Base, experts and ideal."""
    reference: report.Row | None
    """The best shared-λ Task Arithmetic."""
    lines: tuple[Line, ...]
    matrix: Matrix | None
    """Every value's best candidate against every other's; values that are the same study stand once."""
    tie_set: TieSet | None
    """The values that cannot be told from the best."""
    as_reported: tuple[Reported, ...]
    """The top of each value's search as papers report it."""
    spent: report.Spent
    notes: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The finding in one sentence."""
        if self.tie_set is None:
            return "Nothing can be compared yet."
        what, count, best = _plural(self.over), self.tie_set.of, self.tie_set.labels[0]
        if self._is_ahead(best):
            return f"{best} beats all other {what}."
        if not self._outside and self._most is not None:
            return f"No two of the {count} {what} differ by more than {100 * self._most:.1f} points; none is ahead."
        return f"{best} is the highest of {count} {what}; {len(self.tie_set.labels)} of them may be the best."

    @property
    def finding(self) -> str:
        """Whether the axis makes a difference, with a number."""
        if self.tie_set is None:
            return ""
        if self._outside:
            return f"{self.tie_set.text} Told from the best: {', '.join(self._outside)}."
        if self._most is None:
            return self.tie_set.text
        return (
            f"{self.tie_set.text} No two of the {self.tie_set.of} {_plural(self.over)} differ by more than "
            f"{100 * self._most:.1f} points (95 %, all pairs together)."
        )

    @property
    def _outside(self) -> list[str]:
        """Values that are not in the tie set."""
        return [line.label for line in self.lines if line.row and not line.row.tied and not line.is_reference]

    @property
    def _most(self) -> float | None:
        """The largest difference of two values that their intervals leave possible."""
        if self.matrix is None:
            return None
        return max(abs(end) for ends in (self.matrix.low, self.matrix.high) for row in ends for end in row)

    def _is_ahead(self, label: str) -> bool:
        """Whether a value is told from every other one, by the tests that the matrix has."""
        if self.matrix is None:
            return False
        place = self.matrix.labels.index(label)
        others = [p for other, p in enumerate(self.matrix.p_holm[place]) if other != place]
        return all(p < report.SIGNIFICANT for p in others) and min(self.matrix.estimate[place]) >= 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values: dict[str, Any] = report.finite(asdict(self))
        return values


def write(folder: Path, spec: Spec, over: Sequence[str], failures: Mapping[str, str], notes: Sequence[str]) -> None:
    """Keep what a folder's record does not say: the axes, and which rows failed."""
    plain = {"over": list(over), "failures": dict(failures), "notes": list(notes), "spec": spec.as_dict()}
    temporary = folder / f".{FILE}"
    temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(folder / FILE)


def read(folder: Path) -> Comparison:
    """The comparison that a folder holds, from what was recorded. Raises ValueError where it holds none."""
    plain = _stored(folder)
    spec = parse(plain["spec"], str(folder / FILE), locations=False)
    outcomes = Outcomes(folder / "outcomes")
    return build(spec, plain["over"], report.Scores.read(spec, outcomes), plain["failures"], plain["notes"])


def best_of(folder: Path, label: str) -> str:
    """The key of a row's best recipe. Raises ValueError where there is no such row, or nothing in it."""
    found = {line.label: line for line in read(folder).lines}
    line = found.get(label)
    if line is None or line.row is None or line.row.key is None:
        there = ", ".join(name for name, each in found.items() if each.row is not None)
        raise ValueError(f"--trial: a row of the comparison must be named ({there}), but got {label}")
    return line.row.key


def build(
    spec: Spec, over: Sequence[str], scores: report.Scores, failures: Mapping[str, str], notes: Sequence[str]
) -> Comparison:
    """Compare what was recorded."""
    rows = values(spec, over)
    own = {v.label: _own(v.spec, scores) for v in rows}
    best = {label: _best(scores, found) for label, found in own.items()}
    shared = {label: _best(scores, found, shared=True) for label, found in own.items()}
    reference = _best(scores, (s for s in scores.searched.values() if s.recipe.method.name == REFERENCE), shared=True)
    alone = report.lines_alone(spec, scores.confirmed)
    merged = {s.recipe.key: _line_of(s, scores) for s in (reference, *best.values(), *shared.values()) if s}
    panel = scores.panel(spec, {line.key: line.scored for line in (*alone, *merged.values())})
    is_value = {v.label: v.same_as is None and not v.is_reference for v in rows}
    once = {label: s.recipe.key for label, s in best.items() if s is not None and is_value[label]}
    ties = tie_set(panel, list(dict.fromkeys(once.values())), _plural(over)) if len(once) > 1 else None
    tied = ties.labels if ties else ()
    references = {report.BASELINE: reference.recipe.key} if reference else {}
    together = {s.recipe.key: merged[s.recipe.key] for s in (reference, *best.values()) if s}
    found = {row.key: row for row in report.rows_of([*together.values()], panel, tied, references)}
    extra = [line for key, line in merged.items() if key not in together]
    found |= {row.key: row for row in report.rows_of(extra, panel, tied, {})}
    lines = tuple(
        Line(
            label=v.label,
            row=found[s.recipe.key] if (s := best[v.label]) else None,
            shared=found[s.recipe.key] if (s := shared[v.label]) else None,
            candidates=len(own[v.label]),
            failure=failures.get(v.same_as or v.label, None if best[v.label] else NOT_YET),
            is_reference=v.is_reference,
        )
        for v in rows
    )
    notes = [*notes, *_ends(rows, own)]
    notes += [f"{line.label}: {line.failure}; its row is of before." for line in lines if line.row and line.failure]
    return Comparison(
        name=spec.name,
        over=tuple(over),
        items={split: {t: len(by_task[t]) for t in spec.tasks} for split, by_task in scores.labels.items()},
        alone=tuple(report.rows_of(alone, panel, (), {})),
        reference=found[reference.recipe.key] if reference else None,
        lines=lines,
        matrix=matrix(panel, list(once.values()), list(once)),
        tie_set=replace(ties, labels=tuple(k for key in ties.labels for k, v in once.items() if v == key))
        if ties
        else None,
        as_reported=as_reported({v.label: [s.score for s in own[v.label]] for v in rows if v.same_as is None}, TOP),
        spent=report.spent_of(scores),
        notes=tuple(notes),
    )


def _plural(over: Sequence[str]) -> str:
    """What the rows are, for people."""
    names = {"method": "methods", "order": "orders", "nm": "n:m", "density": "densities"}
    return names[over[0].partition("=")[0]] if len(over) == 1 else "rows"


def _ends(rows: Sequence[Value], own: Mapping[str, list[Scored]]) -> list[str]:
    """Rows whose best shared λ is the smallest or largest that was tried: they may be better than they look."""
    found = []
    for value in rows:
        shared = {s.recipe.lambdas[0][1]: s.score for s in own[value.label] if s.recipe.is_shared}
        best = max(shared, key=lambda x: shared[x]) if len(shared) > 2 else None
        if value.same_as is None and best is not None and best in (min(shared), max(shared)):
            found.append(f"{value.label} (λ={best:g})")
    if not found:
        return []
    return [f"At an end of what was tried, so widen space.lambda.methods or baselines: {', '.join(found)}."]


def _own(spec: Spec, scores: report.Scores) -> list[Scored]:
    """The candidates of one row."""
    is_candidate = candidate_of(spec)
    return [s for s in scores.searched.values() if is_candidate(s.recipe)]


def _best(scores: report.Scores, candidates: Any, *, shared: bool = False) -> Scored | None:
    """The best by search score of those that are confirmed."""
    chosen = [s for s in candidates if s.recipe.key in scores.confirmed and (s.recipe.is_shared or not shared)]
    return next(iter(ranked(chosen)), None)


def _line_of(scored: Scored, scores: report.Scores) -> report.Line:
    text, key = str(scored.recipe), scored.recipe.key
    return report.Line(label=text, role="candidate", scored=scores.confirmed[key], searched=scored, text=text)


def as_text(found: Comparison) -> str:
    """The comparison for a terminal: as the papers print it, with each value's best candidate."""
    tasks = list(found.items["confirm"])
    head = ["", *tasks, "average", "95 % interval", "tied", "to best shared TA", "p", "search", "best recipe"]
    lines = [head, *(_cells(row.label, row, tasks) for row in found.alone)]
    if found.reference is not None:
        lines.append(_cells("best shared TA", found.reference, tasks))
    for line in found.lines:
        if line.row is None:
            lines.append([line.label, *("" for _ in head[2:]), f"not run: {line.failure}"])
        else:
            lines.append(_cells(line.label, line.row, tasks, line.against))
    count = {split: sum(by_task.values()) for split, by_task in found.items.items()}
    title = (
        f"{found.name} over {' and '.join(found.over)}: each row is the best of its candidates by {count['search']} "
        f"search items, scored on {count['confirm']} confirm items that no proposal has seen; in points, paired"
    )
    pivot = [] if len(found.over) < 2 else ["", *_pivot(found)]
    pairs = ["", *_pairs(found)] if found.matrix and len(found.matrix.labels) <= WIDEST else []
    ends = [note for note in (*found.notes, found.finding, verdict(found)) if note]
    return "\n".join([title, "", *report.table(lines), *pivot, *pairs, "", *ends, *found.spent.text])


def _pairs(found: Comparison) -> list[str]:
    """Every pair of values: the row's score minus the column's, marked where they can be told apart."""
    assert found.matrix is not None
    of = found.matrix
    rows = [["row - column, points", *(str(place) for place in range(1, len(of.labels) + 1))]]
    for place, label in enumerate(of.labels):
        cells = [
            "." if place == other else f"{100 * of.estimate[place][other]:+z.2f}{'*' if is_told else ''}"
            for other, is_told in enumerate(p < report.SIGNIFICANT for p in of.p_holm[place])
        ]
        rows.append([f"{place + 1} {label}", *cells])
    return [*report.table(rows), "*: told apart (paired permutation test, Holm's correction for all pairs)"]


def _cells(label: str, row: report.Row, tasks: Sequence[str], against: Contrast | None = None) -> list[str]:
    distance = p_value = ""
    if against is not None:
        low, high = (100 * value for value in against.interval)
        distance, p_value = f"{100 * against.estimate:+z.2f} [{low:+z.1f}, {high:+z.1f}]", report.as_p(against.p_holm)
    return [
        label,
        *(f"{100 * row.tasks[task]:.2f}" for task in tasks),
        f"{100 * row.score:.2f}",
        f"[{100 * row.simultaneous[0]:.1f}, {100 * row.simultaneous[1]:.1f}]",
        "*" if row.tied else "",
        distance,
        p_value,
        "" if row.search_score is None else f"{100 * row.search_score:.2f}",
        row.text,
    ]


def _pivot(found: Comparison) -> list[str]:
    """Averages with one axis down and the other across."""
    cells = {tuple(line.label.split(" ")): line for line in found.lines if len(line.label.split(" ")) == 2}
    down, across = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    rows = [["average", *across]]
    for name in down:
        of_row = [cells.get((name, other)) for other in across]
        rows.append(
            [name, *(f"{100 * c.row.score:.2f}" if c is not None and c.row is not None else "-" for c in of_row)]
        )
    return report.table(rows)


def verdict(found: Comparison) -> str:
    """The highest value, and which are told from the best shared-λ Task Arithmetic."""
    done = [line for line in found.lines if line.row is not None]
    if not done:
        return "No row is confirmed yet."
    top = max(done, key=lambda line: line.row.score if line.row else 0.0)
    assert top.row is not None
    text = f"Highest average: {top.label}, {100 * top.row.score:.2f}."
    if found.reference is None:
        return text
    held = {line.row.key: (line.label, of) for line in reversed(done) if line.row and (of := line.against)}
    told = [(label, of) for label, of in reversed(held.values()) if of.p_holm < report.SIGNIFICANT]
    above = [label for label, contrast in told if contrast.estimate > 0]
    below = [label for label, contrast in told if contrast.estimate < 0]
    text += f" Above the best shared-λ Task Arithmetic (Holm's correction): {', '.join(above) or 'none'}; below: "
    return text + f"{', '.join(below) or 'none'}; {len(held) - len(told)} of {len(held)} cannot be told from it."


def check_folder(folder: Path, spec: Spec, over: Sequence[str] | None) -> None:
    """Raises ValueError where a folder holds something else: ``over`` of a comparison, None for a single study."""
    if is_comparison(folder):
        known = axes_of(folder)
        if known != (None if over is None else list(over)):
            raise ValueError(f"{folder}: holds a comparison over {' and '.join(known)}; choose another --output")
        before = parse(_stored(folder)["spec"], str(folder / FILE), locations=False).space.identity()
        for field, value in spec.space.identity().items():
            if before[field] != value:
                raise ValueError(
                    f"space.{field}: must stay as it was when the comparison in {folder} began ({before[field]}), but "
                    f"got {value}; choose another --output"
                )
    elif over is not None and (folder / "study.db").is_file():
        raise ValueError(f"{folder}: holds a study, not a comparison; choose another --output")


def axes_of(folder: Path) -> list[str]:
    """What a folder's comparison is over, as it was asked for."""
    found: list[str] = _stored(folder)["over"]
    return found


def _stored(folder: Path) -> dict[str, Any]:
    """What ``write`` kept. Raises ValueError where it is damaged."""
    try:
        plain = yaml.safe_load((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{folder / FILE}: cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict) or not {"spec", "over", "failures", "notes"} <= plain.keys():
        raise ValueError(f"{folder / FILE}: spec, over, failures and notes must be in it")
    return plain


def is_comparison(folder: str | Path) -> bool:
    """Whether a folder holds a comparison."""
    return (Path(folder) / FILE).is_file()
