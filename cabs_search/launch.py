"""One study from spec to leaderboard: checks everything, searches, tracks, reports. What ``cabs-search run`` calls."""

from __future__ import annotations

import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock, Timeout
from tqdm import tqdm

from cabs_search import comparison, page, report
from cabs_search.baselines import baselines, candidate_of, methods_of, ranked
from cabs_search.charts import pictures
from cabs_search.checkpoint import first_line
from cabs_search.comparison import Comparison
from cabs_search.evaluate import check_heads, pick_device
from cabs_search.export import compact_bytes, export
from cabs_search.locations import cache_folder
from cabs_search.logbook import Logbook, Say, StudyLog
from cabs_search.outcomes import Outcomes, Scored
from cabs_search.recipe import Method, Recipe, group_of, split_name
from cabs_search.serving import inputs_of, write_tasks
from cabs_search.sparsify import CALIBRATED, MASKS, Mask
from cabs_search.spec import Spec, load
from cabs_search.store import Family, Store, StoredVector
from cabs_search.summary import summary_of
from cabs_search.tasks import SPLITS, Items, SplitName, load_items, read_dataset

if TYPE_CHECKING:
    from cabs_search.search.studies import Studies
    from cabs_search.search.study import Study
    from cabs_search.tracking import Model, Summary

MOST_MODEL_BYTES = 2_000_000_000
"""The largest model that a study's run gets unasked."""


def to_stderr(text: str) -> None:
    """Say something to the person who waits."""
    tqdm.write(text, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found and where it is kept."""

    folder: Path
    leaderboard: report.Leaderboard
    best: Recipe
    """The candidate with the best search score."""
    scored_items: int
    """Items scored in this run; what was on record is not scored again."""
    tracking_uri: str


def run(
    spec: Spec | str | Path,
    output: str | Path | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    say: Say = to_stderr,
) -> SearchResult:
    """Search a space until its budget is spent; on a folder with an unfinished study, go on with it.

    Args:
        spec: a spec, or the path of its file.
        output: the study's folder; None: ``results/NAME``.
        address: a running Ray cluster's; None: workers on this machine.
        tracking_uri: MLflow's; None: SQLite in the folder.
        say: told what is being done.

    Raises:
        ValueError: the spec, its models or its data are wrong; nothing has been written then.
        RuntimeError: the search failed on the way; what was scored is kept.

    """
    opened = _Opened(spec, output, address, say)
    spec, folder = opened.spec, opened.folder
    with _only_driver(folder) as is_new, Logbook(folder, tracking_uri, say) as book:
        from cabs_search.search.driver import search

        try:
            study = _open_study(spec, folder, opened.items, opened.weights)
            calibrations = opened.prune_calibrated(spec)
        except ValueError:
            if is_new:  # refused before anything was done
                shutil.rmtree(folder)
            raise
        page.record_versions(folder)
        tracked = book.study(spec)
        tracked.open(study.outcomes, study.id)
        study.take_up(tracked.candidate)
        say(f"starting workers; the study is kept in {folder}")
        try:
            search(study, opened.items, cache_folder(), calibrations=calibrations, address=address)
            scores = report.Scores.read(spec, study.outcomes)
            board = report.board_of(spec, scores)
            files = _files(board, folder, say)
            tracked.end(scores.confirmed, *_findings(opened, spec, board, study.best, files))
        except BaseException:
            tracked.close()
            raise
    if study.exhausted:
        say(f"nothing new was proposed after {study.done} candidates: the space is, or nearly is, searched through")
    if study.best is None:
        raise RuntimeError("no candidate was scored")
    return SearchResult(
        folder=folder,
        leaderboard=board,
        best=study.best.recipe,
        scored_items=study.scored_items,
        tracking_uri=book.uri,
    )


def compare(
    spec: Spec | str | Path,
    over: Sequence[str],
    output: str | Path | None = None,
    *,
    address: str | None = None,
    tracking_uri: str | None = None,
    say: Say = to_stderr,
) -> Comparison:
    """The same search for each value of an axis; on a folder with an unfinished comparison, go on with it.

    Args:
        spec: a spec, or the path of its file; ``search.trials`` is each value's budget.
        over: as in ``comparison.values``.
        output: the comparison's folder; None: ``results/NAME-over-AXES``.
        address, tracking_uri, say: as in ``run``.

    Raises:
        ValueError: the spec, the axes, its models or its data are wrong; nothing has been written then.
        RuntimeError: the workers failed on the way; what was scored is kept. A row that fails is no error: it says why.

    """
    spec = spec if isinstance(spec, Spec) else load(spec)
    rows = [value for value in comparison.values(spec, over) if value.same_as is None]
    name = comparison.experiment_name(spec, over)
    opened = _Opened(spec, output or Path("results") / name, address, say, over)
    with _only_driver(opened.folder) as is_new, Logbook(opened.folder, tracking_uri, say) as book:
        from cabs_search.search.driver import search

        try:
            outcomes = Outcomes(opened.folder / "outcomes")
            outcomes.bind(spec, opened.items, opened.weights)
        except ValueError:
            if is_new:
                shutil.rmtree(opened.folder)
            raise
        trackers = {v.label: book.study(v.spec, name) for v in rows}
        compared = _Compared(opened, over, rows, outcomes, trackers)
        calibrations = compared.prune_calibrated()
        _write_spec(spec, opened.folder)
        page.record_versions(opened.folder)
        compared.write()
        say(f"starting workers for {len(rows)} studies; they are kept in {opened.folder}")
        try:
            search(compared.studies(), opened.items, cache_folder(), calibrations=calibrations, address=address)
        finally:
            for tracked in trackers.values():
                tracked.close()
        found = comparison.read(opened.folder)
        _write_page(found, opened.folder, say)
    return found


class _Compared:
    """The studies of a comparison: opened when workers reach them, written down when they end."""

    def __init__(
        self,
        opened: _Opened,
        over: Sequence[str],
        rows: Sequence[comparison.Value],
        outcomes: Outcomes,
        trackers: Mapping[str, StudyLog],
    ) -> None:
        self._opened, self._over, self._rows = opened, over, rows
        self._outcomes, self._trackers = outcomes, trackers
        self._failures: dict[str, str] = {}

    def prune_calibrated(self) -> dict[str, Path]:
        """As ``_Opened.prune_calibrated`` for all rows; a row for which it cannot be done fails by itself."""
        wanting: dict[str, Spec] = {}
        for value in self._rows:
            try:
                check_calibration(value.spec)
                wanting |= {value.label: value.spec} if calibrated_methods(value.spec) else {}
            except ValueError as error:
                self._failures[value.label] = first_line(error)
        try:
            return self._opened.prune_calibrated(*wanting.values())
        except (ValueError, RuntimeError) as error:
            self._failures |= dict.fromkeys(wanting, first_line(error))
            return {}

    def studies(self) -> Studies:
        """All rows that can run, as what the driver runs; the first one confirms base and experts."""
        from cabs_search.search.studies import Studies

        runnable = [value for value in self._rows if value.label not in self._failures]
        makers = {v.label: (v.spec.search.trials, self._opener(v, v is runnable[0])) for v in runnable}
        self._studies = Studies(self._opened.spec, self._opened.items, self._outcomes, makers, self._ended)
        return self._studies

    def _opener(self, value: comparison.Value, alone: bool) -> Callable[[], Study]:
        def make() -> Study:
            from cabs_search.search.study import Study

            study = Study(
                value.spec,
                self._opened.folder,
                self._opened.items,
                self._outcomes,
                part=value.label,
                alone=alone,
                is_busy=self._studies.is_confirming,
            )
            self._trackers[value.label].open(self._outcomes, study.id)
            study.take_up(self._trackers[value.label].candidate)
            return study

        return make

    def _ended(self, label: str, study: Study) -> None:
        if study.failure:
            self._failures[label] = study.failure
            self._trackers[label].close()
        else:
            try:
                self._track(label, study)
            except Exception as error:  # is this row's alone: what it scored is on record
                self._opened.say(f"{label}: what it found is not in MLflow: {first_line(error)}")
                self._trackers[label].close()
        self.write()

    def _track(self, label: str, study: Study) -> None:
        scores = report.Scores.read(study.spec, self._outcomes, candidate_of(study.spec))
        board = report.board_of(study.spec, scores)
        best = study.best if study.spec.tracking.model == "always" else None
        self._trackers[label].end(scores.confirmed, *_findings(self._opened, study.spec, board, best, {}, row=label))

    def write(self) -> None:
        """Keep what the record does not say."""
        opened = self._opened
        comparison.write(opened.folder, opened.spec, self._over, self._failures, opened.notes)


class _Opened:
    """A spec seen to be right: its models, its items, its folder; nothing is written yet."""

    def __init__(
        self,
        spec: Spec | str | Path,
        output: str | Path | None,
        address: str | None,
        say: Say,
        over: Sequence[str] | None = None,
    ) -> None:
        self.say = say
        self.spec = spec = spec if isinstance(spec, Spec) else load(spec)
        self.folder = folder = Path(output) if output else Path("results") / spec.name
        if set("?%") & set(str(folder.absolute())):
            raise ValueError(f"{folder}: must have no ? and no % in its path, which mean something in a database's URL")
        if address:
            _check_reachable(address)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: must be a folder")
        comparison.check_folder(folder, spec, over)
        say(f"checking {len(spec.experts)} experts and {len(spec.tasks)} tasks")
        self.family = Family.open(spec.base, spec.experts)
        check_heads(spec, self.family)
        check_groups(spec, self.family)
        self.items = load_study_items(spec)
        pick_device(spec.device)
        self.weights = {"base": self.family.base.fingerprint} | self.family.fingerprints
        self.notes: list[str] = []

    def prune_calibrated(self, *specs: Spec) -> dict[str, Path]:
        """Build the vectors of rules that need calibration items, which workers could not; files of the statistics."""
        needing: dict[Mask, None] = {}
        for spec in specs:
            alike = replace(spec, space=spec.space.but(density_shared=True))  # has every vector, as each is alone
            methods = (*methods_of(alike), *(recipe.method for recipe in baselines(spec)))
            needing |= dict.fromkeys(m.mask for m in methods if isinstance(m.mask, CALIBRATED))
            check_calibration(spec)
        if not needing:
            return {}
        family = calibrated(self.spec, self.family, self.items["search"], needing)
        for mask in needing:
            total = family.alignment.weights
            with tqdm(total=total, unit="weight", unit_scale=True, desc=mask.name, file=sys.stderr) as bar:
                Store(cache_folder()).ensure(family, Method(mask=mask), bar.update)
            self._note(family, mask)
        return {expert: statistics.path for expert, statistics in family.calibrations.items()}

    def _note(self, family: Family, mask: Mask) -> None:
        other = {
            tensor
            for tensor in family.alignment.shared
            if not all(s.knows(tensor) for s in family.calibrations.values())
        }
        part = sum(family.numel(tensor) for tensor in other) / family.alignment.weights
        note = (
            f"{mask.name}: {len(other)} of {len(family.alignment.shared)} tensors ({part:.0%} of the weights) are no "
            "linear layer's and are pruned by magnitude."
        )
        if note not in self.notes:
            self.notes.append(note)
            self.say(note)


def calibrated(spec: Spec, family: Family, items: Mapping[str, Items], masks: Iterable[Mask]) -> Family:
    """A family that knows what its experts' layers saw, where a rule needs it."""
    from cabs_search.calibrate import calibrate

    return replace(family, calibrations=calibrate(spec, family, items, cache_folder(), masks))


def check_calibration(spec: Spec) -> None:
    """Raises ValueError where a rule needs calibration items of an expert that has no task."""
    idle = set(spec.experts) - {spec.expert_of(task) for task in spec.tasks}
    if idle and (names := calibrated_methods(spec)):
        raise ValueError(
            f"space.method: {names[0]} takes calibration items from a task of each expert, but {min(idle)} has none"
        )


def calibrated_methods(spec: Spec) -> list[str]:
    """The methods of a spec that need a calibration pass."""
    names = (*spec.space.method, *spec.baselines)
    return [name for name in names if issubclass(MASKS[split_name(name)[1]], CALIBRATED)]


def check_groups(spec: Spec, family: Family) -> None:
    """Raises ValueError unless every merged tensor is in a group of λ and every group has a tensor."""
    groups = spec.space.groups
    if not groups:
        return
    try:
        used = {group_of(groups, tensor) for tensor in family.alignment.shared}
    except ValueError as error:
        raise ValueError(f"space.lambda.groups: {error}; a last group such as `other: .` takes the rest") from None
    for name, pattern in groups:
        if name not in used:
            raise ValueError(f"space.lambda.groups.{name}: a group must have tensors of its own, but got {pattern!r}")


def _open_study(
    spec: Spec, folder: Path, items: Mapping[SplitName, Mapping[str, Items]], weights: Mapping[str, str]
) -> Study:
    """The record and the search of a folder, seen to be of this spec, which is written beside them."""
    from cabs_search.search.study import Study

    outcomes = Outcomes(folder / "outcomes")
    outcomes.bind(spec, items, weights)
    study = Study(spec, folder, items, outcomes)
    _write_spec(spec, folder)
    return study


def _check_reachable(address: str) -> None:
    """Raises RuntimeError where nothing answers at HOST:PORT; Ray itself would wait for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise RuntimeError(f"--address {address}: no Ray cluster answers there: {error}") from error


@contextmanager
def _only_driver(folder: Path) -> Iterator[bool]:
    """Hold the folder, made where there is none (True); RuntimeError where another driver is at work."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"{folder}: another cabs-search is at work here") from None
    with lock:
        yield is_new


def load_study_items(spec: Spec) -> dict[SplitName, dict[str, Items]]:
    """Every task's items by split. Raises ValueError where the data is wrong."""
    by_task = {task: load_items(spec, task) for task in spec.tasks}
    return {split: {task: found[split] for task, found in by_task.items()} for split in SPLITS}


def _write_spec(spec: Spec, folder: Path) -> None:
    temporary = folder / ".spec.yaml"
    temporary.write_text(yaml.safe_dump(spec.as_dict(), sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(folder / "spec.yaml")


def export_trial(folder: str | Path, trial: str, to: str | Path) -> tuple[Recipe, Path]:
    """Write a searched candidate as a checkpoint.

    Args:
        trial: ``best`` (by search score), or a candidate's number as the study and MLflow count; of a comparison
            ``best``, or a row's label.

    Raises:
        ValueError: no such study or candidate; ``to`` is not empty.

    """
    import torch

    board = report.leaderboard(folder)
    spec, outcomes = load(Path(folder) / "spec.yaml"), Outcomes(Path(folder) / "outcomes")
    searched = outcomes.scored(spec, "search")
    if not searched:
        raise ValueError(f"{folder}: no candidate is scored yet")
    if trial == "best":
        chosen = ranked(searched.values())[0]
    elif comparison.is_comparison(folder):
        chosen = searched[comparison.best_of(Path(folder), trial)]
    else:
        from cabs_search.search.study import recipe_of_trial

        key = recipe_of_trial(spec, Path(folder), trial)
        if key not in searched:
            raise ValueError(f"--trial: candidate {trial} has no complete score in {folder}")
        chosen = searched[key]
    family = Family.open(spec.base, spec.experts)
    heads = {task: spec.expert_of(task) for task in spec.tasks}
    dtype = getattr(torch, spec.dtype)
    facts = _facts(board, chosen)
    vectors = _calibrated_vectors(spec, family, chosen.recipe)
    return chosen.recipe, export(family, chosen.recipe, to, heads=heads, facts=facts, dtype=dtype, vectors=vectors)


def _calibrated_vectors(spec: Spec, family: Family, recipe: Recipe) -> dict[str, StoredVector] | None:
    """The very vectors that were scored, where pruning needs calibration items; None where it does not."""
    mask = recipe.method.mask
    if not isinstance(mask, CALIBRATED):
        return None
    store, family = Store(cache_folder()), calibrated(spec, family, load_study_items(spec)["search"], [mask])
    return store.open(store.ensure(family, recipe.method))


def _write_page(found: report.Leaderboard | Comparison, folder: Path, say: Say) -> dict[str, bytes]:
    """Write the page and read it; empty where it cannot be, which costs no result."""
    try:
        written = page.write(found, folder)
        return {written.name: written.read_bytes()}
    except (RuntimeError, OSError) as error:
        say(first_line(error))
        return {}


def _files(board: report.Leaderboard, folder: Path, say: Say) -> dict[str, bytes]:
    """A study's page and its pictures, by name, as far as they can be made."""
    files = _write_page(board, folder, say)
    try:
        return files | {f"pictures/{name}.png": drawn for name, drawn in pictures(board).items()}
    except Exception as error:
        say(f"the charts could not be drawn as pictures: {first_line(error)}")
        return files


def _findings(
    opened: _Opened,
    spec: Spec,
    board: report.Leaderboard,
    best: Scored | None,
    files: Mapping[str, bytes],
    *,
    row: str = "",
) -> tuple[Summary, Model | None]:
    """What MLflow is given at the end.

    Args:
        best: what is logged as a model, where the spec wants one.
        files: the report and its pictures.
        row: of a comparison, the study's.

    """
    import torch

    heads = [spec.expert_of(task) for task in spec.tasks]
    size = compact_bytes(opened.family, heads, getattr(torch, spec.dtype))
    is_large = spec.tracking.model == "auto" and size > MOST_MODEL_BYTES
    is_wanted = best is not None and spec.tracking.model != "never"
    hint = (
        f"The best found takes {size / 1e9:.1f} GB and is not logged as a model unasked (`tracking: {{model: always}}` "
        "does); the export below writes it."
    )
    folder = shlex.quote(str(opened.folder)) + (f" --trial {shlex.quote(row)}" if row else "")
    summary = summary_of(board, folder, files, [hint] if is_wanted and is_large else [])
    return summary, _model(opened, spec, board, best) if best is not None and is_wanted and not is_large else None


def _model(opened: _Opened, spec: Spec, board: report.Leaderboard, best: Scored) -> Model:
    import torch

    from cabs_search.tracking import Model

    def write(to: Path) -> None:
        vectors = _calibrated_vectors(spec, opened.family, best.recipe)
        heads, dtype = {task: spec.expert_of(task) for task in spec.tasks}, getattr(torch, spec.dtype)
        facts = _facts(board, best)
        export(opened.family, best.recipe, to, heads=heads, facts=facts, dtype=dtype, vectors=vectors, compact=True)
        write_tasks(spec, to)

    def example() -> dict[str, Any]:
        name, task = next(iter(spec.tasks.items()))
        row = read_dataset(f"tasks.{name}", task, task.search.split or task.split)[0]
        return {column: row[column] for column in inputs_of(task)}

    recipe = best.recipe
    return Model(key=recipe.key, text=str(recipe), tasks=spec.tasks, write=write, example=example)


def _facts(board: report.Leaderboard, chosen: Scored) -> list[str]:
    facts = [f"- search split: {chosen.score:.4f}"]
    for row in board.rows:
        if row.key == chosen.recipe.key:
            low, high = row.interval
            tasks = ", ".join(f"{task} {value:.4f}" for task, value in row.tasks.items())
            return [*facts, f"- confirm split: {row.score:.4f} [{low:.4f}, {high:.4f}] ({tasks})"]
    return facts
