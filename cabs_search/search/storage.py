"""Optuna's database of a search: a trial is written when it is proposed and when it ends."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cabs_search.common.files import use_write_ahead_log
from cabs_search.common.formats import first_line
from cabs_search.common.redact import without_password
from cabs_search.merging.masks.rules import SETTINGS
from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyFolder, StudyId
from cabs_search.search.patience import Patience, no_answer, outage

ADDRESS_VARIABLE = "CABS_SEARCH_STORAGE"
"""Environment variable with the database's URL, in place of ``search.storage``: for passwords."""
CONNECTING = {"connect_timeout": 10, "keepalives_idle": 30, "tcp_user_timeout": 30_000}
"""Settings of PostgreSQL's client, by which a server that is gone is noticed: s, s, ms."""
RECOMMENDED = "recommended"
"""Attribute of a trial that was proposed to be recommended: it is scored in full."""
ENDED = "ended"
"""Attribute of a trial: its place among those that have ended, from 1. Times do not tell the order
once a clock was set back.
"""
REPEAT = "repeat"
"""Attribute of a proposal that is no trial: it was the same merged model as an ended candidate."""
NEVER = datetime.max
MEAN = "mean"
"""Objective of studies that name none."""


class StudyDatabase:
    """Trials of one study."""

    def __init__(
        self,
        folder: Path,
        url: str | None,
        name: str,
        study_id: StudyId,
        space: Mapping[str, str],
        objective: str = MEAN,
        names: Sequence[str] = ("score",),
    ) -> None:
        """Open or create the study ``name``.

        Args:
            folder: the study's folder; holds the database unless ``url`` names another one.
            url: an SQLAlchemy URL; see ``storage_url``.
            name: Optuna's study name.
            study_id: the record that the study belongs to; in a shared database two studies may
                have one name.
            space: the searched values by field; must not change while a study lasts.
            objective: what the study maximizes; must not change either.
            names: names of the numbers that it maximizes.

        Raises:
            ValueError: the database cannot be opened, or its study has another record, space or
                objective.
            RuntimeError: its server does not answer.

        """
        self.id = study_id
        url = storage_url(folder, url)
        self._storage, self._study = _open(folder, url, name, names)
        self._study_id = self._storage.get_study_id_from_name(name)
        source = without_password(url or StudyFolder(folder).study_database.name)
        place = source if url else str(StudyFolder(folder).study_database)
        self._patience = Patience(place, is_server=is_server(url))
        if self._study.user_attrs.get("id", str(study_id)) != str(study_id):
            raise ValueError(
                f"{source}: the study {name!r} there belongs to another record; choose"
                " another name, or another --output"
            )
        self._study.set_user_attr("id", str(study_id))
        stored_space = self._study.user_attrs.get("space", space)
        left = (stored_space.keys() & {*SETTINGS, "lambda.anchors", "stack"}) - space.keys()
        for field in [*space, *sorted(left)]:
            if stored_space.get(field) != space.get(field):
                raise ValueError(
                    f"space.{field}: must stay as it was when the study in {source} began"
                    f" ({stored_space.get(field, 'not given')}), but got"
                    f" {space.get(field, 'none')}; choose another --output"
                )
        known = self._study.user_attrs.get("objective", MEAN)
        if "space" in self._study.user_attrs and known != objective:
            raise ValueError(
                f"search.objective: must stay as it was when the study in {source} began ({known}),"
                f" but got {objective}; choose another --output"
            )
        self._study.set_user_attr("objective", objective)
        self._study.set_user_attr("space", space)
        self._ended_trials = max(map(place_of_end, self.trials()), default=0)
        self._repeats = len(self._noted_repeats())

    def trials(self) -> list[FrozenTrial]:
        """Read all trials, in the order they were proposed."""
        return self._patience(lambda _: list(self._storage.get_all_trials(self._study_id)))

    def trial_id(self, trial: FrozenTrial) -> int:
        """Return the database's id of a trial, which is not its number in the study."""
        find_id = self._storage.get_trial_id_from_study_id_trial_number
        return self._patience(lambda _: int(find_id(self._study_id, trial.number)))

    def add(self, trial: optuna.Trial, recipe: Recipe, *, is_recommended: bool = False) -> int:
        """Write a proposal in one transaction, with what its sampler noted; return its id."""
        in_memory = trial.study.get_trials(deepcopy=False)[trial.number]
        attributes = {"recipe": json.dumps(recipe.as_dict())}
        template = create_trial(
            state=TrialState.RUNNING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs=attributes | ({RECOMMENDED: True} if is_recommended else {}),
            system_attrs=in_memory.system_attrs,
        )

        def create(is_again: bool) -> int:
            if is_again and (last := self._last_trial()) and last.user_attrs == template.user_attrs:
                return int(last._trial_id)  # the answer was lost, not the trial
            return int(self._storage.create_new_trial(self._study_id, template_trial=template))

        return self._patience(create)

    def _last_trial(self) -> FrozenTrial | None:
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        return trials[-1] if trials else None

    def complete(
        self, trial_id: int, values: Sequence[float], materialize_seconds: float
    ) -> FrozenTrial:
        """End a trial with what the study maximizes of it; return it as stored."""

        def write() -> None:
            self._storage.set_trial_user_attr(trial_id, "materialize_seconds", materialize_seconds)
            self._storage.set_trial_state_values(trial_id, TrialState.COMPLETE, values)

        return self._ended(trial_id, write)

    def prune(
        self, trial_id: int, score: float, items: int, materialize_seconds: float
    ) -> FrozenTrial:
        """End a trial that was stopped, with its mean score on some items; return it as stored."""

        def write() -> None:
            self._storage.set_trial_user_attr(trial_id, "materialize_seconds", materialize_seconds)
            self._storage.set_trial_user_attr(trial_id, "items", items)
            self._storage.set_trial_intermediate_value(trial_id, items, score)
            self._storage.set_trial_state_values(trial_id, TrialState.PRUNED, [score])

        return self._ended(trial_id, write)

    def fail(self, trial_id: int, error: str, materialize_seconds: float) -> FrozenTrial:
        """End a trial with its error; return it as stored."""

        def write() -> None:
            self._storage.set_trial_user_attr(trial_id, "materialize_seconds", materialize_seconds)
            self._storage.set_trial_user_attr(trial_id, "error", error)
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)

        return self._ended(trial_id, write)

    def discard(self, trial_id: int) -> FrozenTrial:
        """End a trial as failed without a word; return it as stored."""
        return self._ended(
            trial_id, lambda: self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        )

    def repeat_of(
        self, trial: optuna.Trial, recipe: Recipe, values: Sequence[float]
    ) -> dict[str, Any]:
        """Describe a proposal that gets the values of a candidate that has ended."""
        in_memory = trial.study.get_trials(deepcopy=False)[trial.number]
        distributions = trial.distributions
        return {
            "recipe": json.dumps(recipe.as_dict()),
            "values": list(values),
            "params": trial.params,
            "distributions": {n: distribution_to_json(d) for n, d in distributions.items()},
            "system_attrs": in_memory.system_attrs,
            ENDED: self._ended_trials,
        }

    def note_repeat(self, repeat: dict[str, Any]) -> None:
        """Keep what ``repeat_of`` describes.

        Samplers that work by generations count it, also when the search goes on. It is no trial,
        for no item was scored.
        """
        key = f"{REPEAT}:{self._repeats}"
        self._repeats += 1
        self._patience(lambda _: self._storage.set_study_system_attr(self._study_id, key, repeat))

    def repeats(self) -> list[FrozenTrial]:
        """Read the proposals that were kept, as complete trials with the attribute ``REPEAT``."""
        return [
            create_trial(
                values=own["values"],
                params=own["params"],
                distributions={
                    n: json_to_distribution(text) for n, text in own["distributions"].items()
                },
                user_attrs={"recipe": own["recipe"], ENDED: own[ENDED], REPEAT: True},
                system_attrs=own["system_attrs"],
            )
            for own in self._noted_repeats()
        ]

    def _noted_repeats(self) -> list[dict[str, Any]]:
        """Read what ``note_repeat`` has kept, in its order: a server gives rows in any order."""
        noted = self._patience(lambda _: self._storage.get_study_system_attrs(self._study_id))
        keys = [key for key in noted if key.startswith(f"{REPEAT}:")]
        return [noted[key] for key in sorted(keys, key=lambda key: int(key.rpartition(":")[2]))]

    def _ended(self, trial_id: int, write: Callable[[], object]) -> FrozenTrial:
        """Write the end of a trial, and return the trial as stored."""

        def end(is_again: bool) -> FrozenTrial:
            # After an outage the end may be written, though its answer was lost.
            if not is_again or not self._storage.get_trial(trial_id).state.is_finished():
                self._storage.set_trial_user_attr(trial_id, ENDED, self._ended_trials)
                write()
            return self._storage.get_trial(trial_id)

        self._ended_trials += 1
        return self._patience(end)

    def close(self) -> None:
        """Close the database's connections."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def recipe_key_of_trial(
    folder: Path, url: str | None, name: str, study_id: StudyId, number: str
) -> str | None:
    """Return the recipe key of a study's trial, by the trial's number; None if there is none.

    Arguments as of ``StudyDatabase``; nothing is made.

    Raises:
        ValueError, RuntimeError: as of ``StudyDatabase``.

    """
    url = storage_url(folder, url)
    if not url and not StudyFolder(folder).study_database.is_file():
        return None
    study = _open(folder, url, name, None)[1]
    if study.user_attrs.get("id", str(study_id)) != str(study_id):
        source = without_password(url or StudyFolder(folder).study_database.name)
        raise ValueError(f"{source}: the study {name!r} there belongs to another record")
    trials = study.get_trials(deepcopy=False)
    if not number.isdecimal() or int(number) >= len(trials):
        return None
    recipe = recipe_of(trials[int(number)])
    return recipe.key if recipe else None


def recipe_of(trial: FrozenTrial) -> Recipe | None:
    """Return the recipe that a trial scores; None for trials that are not ours."""
    text = trial.user_attrs.get("recipe")
    return Recipe.from_dict(json.loads(text)) if text else None


def place_of_end(trial: FrozenTrial) -> int:
    """Return a trial's place among those that have ended, from 1; 0 in studies of old versions."""
    return int(trial.user_attrs.get(ENDED, 0))


def in_order_of_end(trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
    """Sort trials by their end; those that have not ended are the last."""

    def key(trial: FrozenTrial) -> tuple[bool, int, datetime]:
        is_open = not trial.state.is_finished()
        return is_open, 0 if is_open else place_of_end(trial), trial.datetime_complete or NEVER

    return sorted(trials, key=key)


def is_recommended(trial: FrozenTrial) -> bool:
    """Tell whether a trial was proposed to be recommended."""
    return RECOMMENDED in trial.user_attrs


def is_repeat(trial: FrozenTrial) -> bool:
    """Tell whether a trial is a proposal that was kept by ``StudyDatabase.note_repeat``."""
    return REPEAT in trial.user_attrs


def has_ended_by_itself(trial: FrozenTrial) -> bool:
    """Tell whether a trial was scored, stopped or got an error, rather than being cut off."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or (
        trial.state == TrialState.FAIL and "error" in trial.user_attrs
    )


def storage_url(folder: Path, url: str | None) -> str | None:
    """Return the URL of a study's database; None if it is a file in the study's folder.

    The environment's (``ADDRESS_VARIABLE``) goes before the spec's; a folder that has a database
    keeps it.
    """
    if url is None and StudyFolder(folder).study_database.is_file():
        return None
    return os.environ.get(ADDRESS_VARIABLE) or url


def is_server(url: str | None) -> bool:
    """Tell whether a database's URL is a server's, and no file's."""
    return url is not None and not url.startswith("sqlite")


def _open(
    folder: Path, url: str | None, name: str, names: Sequence[str] | None
) -> tuple[optuna.storages.RDBStorage, optuna.Study]:
    """Open a database and its study of that name; ``names`` of what a new one maximizes, or None to
    make none.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = StudyFolder(folder).study_database
    url_or_file = url or f"sqlite:///{path}"
    try:
        if not url:
            use_write_ahead_log(path)
        engine: dict[str, Any] = {"pool_pre_ping": True} if is_server(url) else {}
        if url and url.startswith("postgresql"):
            engine["connect_args"] = CONNECTING
        storage = optuna.storages.RDBStorage(url_or_file, engine_kwargs=engine)
        if names is None:
            return storage, optuna.load_study(storage=storage, study_name=name)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=["maximize"] * len(names),
            load_if_exists=True,
        )
        if len(names) > 1 and len(study.directions) == len(names):
            with warnings.catch_warnings():
                # names, which dashboards show, count as experimental
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(list(names))
        return storage, study
    except Exception as error:
        if is_server(url) and (cause := outage(error)) is not None:
            raise RuntimeError(no_answer(without_password(url_or_file), cause)) from error
        reason = f"{url_or_file}: the study cannot be opened: {first_line(error)}"
        raise ValueError(without_password(reason)) from error
