"""The search's Optuna database."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
from optuna.trial import TrialState

from cabs_search.common.files import use_write_ahead_log
from cabs_search.common.formats import first_line
from cabs_search.merging.recipe import Recipe
from cabs_search.record.folder import StudyFolder
from cabs_search.spec.study import Spec


def recipe_of_trial(spec: Spec, folder: Path, number: str) -> str | None:
    """The key of a candidate's recipe, by its number; None where there is no such candidate."""
    if not spec.search.storage and not StudyFolder(folder).study_database.is_file():
        return None
    trials = load_study(spec, open_storage(spec, folder)).get_trials(deepcopy=False)
    recipe = (
        recipe_of(trials[int(number)]) if number.isdecimal() and int(number) < len(trials) else None
    )
    return recipe.key if recipe else None


def open_storage(spec: Spec, folder: Path) -> optuna.storages.RDBStorage:
    """The search's database: in the folder, unless the spec names one."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = StudyFolder(folder).study_database
    url = spec.search.storage or f"sqlite:///{path}"
    try:
        if not spec.search.storage:
            use_write_ahead_log(path)
        return optuna.storages.RDBStorage(url)
    except Exception as error:
        raise ValueError(f"{url}: the study cannot be opened: {first_line(error)}") from error


def load_study(spec: Spec, storage: optuna.storages.RDBStorage) -> optuna.Study:
    try:
        return optuna.create_study(
            storage=storage, study_name=spec.name, direction="maximize", load_if_exists=True
        )
    except Exception as error:
        raise ValueError(
            f"{storage.url}: the study cannot be opened: {first_line(error)}"
        ) from error


def recipe_of(trial: optuna.Trial | optuna.trial.FrozenTrial) -> Recipe | None:
    text = trial.user_attrs.get("recipe")
    return Recipe.from_dict(json.loads(text)) if text else None


def is_candidate(trial: optuna.trial.FrozenTrial) -> bool:
    """Whether a trial is a candidate that ended by itself."""
    return trial.state == TrialState.COMPLETE or (
        trial.state == TrialState.FAIL and "error" in trial.user_attrs
    )
