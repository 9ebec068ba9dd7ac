"""Connections to the MLflow that has a folder's runs, and addresses in its UI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from cabs_search.common.redact import without_password
from cabs_search.record.folder import StudyFolder, StudyId
from cabs_search.tracking import views
from cabs_search.tracking.runs import STUDY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

ADDRESS_VARIABLE = "CABS_SEARCH_TRACKING_URI"
"""Environment variable with the tracking URI, in place of ``--tracking-uri``: for passwords."""
DATABASES = ("postgresql", "mysql", "mssql")
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # Without this, an address is printed for every candidate, which takes one more request.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A retried request doubles a run that the server made without answering in time.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment variables that MLflow reads, unless the user has set them."""


def connect(uri: str) -> MlflowClient:
    """Start MLflow with ``SETTINGS``; import it only after this or through it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if is_database(uri):  # MLflow itself would try for 100 seconds, with a warning each time
        from mlflow.store.db import utils

        utils.MAX_RETRY_COUNT = 1
    return MlflowClient(tracking_uri=uri)


def default_uri(folder: Path) -> str:
    """Return the tracking URI of the folder's own SQLite file."""
    return f"sqlite:///{StudyFolder(folder.resolve()).tracking_database}"


def given_uri(uri: str | None) -> str | None:
    """Return a tracking URI that was given as an option, else the environment's."""
    return uri or os.environ.get(ADDRESS_VARIABLE) or None


def uri_of(folder: Path) -> str:
    """Return the tracking URI of a folder's runs: the last server's, or the folder's own file.

    The environment's is returned if it is the same but for the secrets, which are not kept.
    """
    kept = StudyFolder(folder).tracking_address
    if not kept.is_file():
        return default_uri(folder)
    address = kept.read_text(encoding="utf-8").strip()
    given = os.environ.get(ADDRESS_VARIABLE, "")
    return given if without_password(given) == address else address


def remember_uri(folder: Path, uri: str | None) -> None:
    """Keep the address of a server or its database, without secrets, for ``uri_of``."""
    kept = StudyFolder(folder).tracking_address
    if uri is None or not (is_server(uri) or is_database(uri)):
        kept.unlink(missing_ok=True)
        return
    kept.write_text(without_password(uri) + "\n", encoding="utf-8")


def is_server(uri: str) -> bool:
    """Tell whether a tracking URI is a server's, which has a UI already."""
    return uri.startswith(("http://", "https://"))


def is_database(uri: str) -> bool:
    """Tell whether a tracking URI is of a database server, into which MLflow writes by itself."""
    return uri.startswith(DATABASES)


def version_at(uri: str) -> str:
    """Return the version of the MLflow that shows the runs: the server's, or the one installed."""
    if not is_server(uri):
        import mlflow

        return str(mlflow.__version__)
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return str(answer.text).strip() if answer.ok else "of unknown version"


def ui_links(
    uri: str, root: str, experiment: str, study_id: StudyId, *, is_comparison: bool
) -> dict[str, str]:
    """Return addresses of a study's or comparison's runs in the UI by name; none without runs.

    Args:
        uri: tracking URI.
        root: address of the UI.
        experiment: name of the experiment.
        study_id: the study's; for a comparison, of its record without a value.
        is_comparison: whether to look for all studies of the record.

    """
    client = connect(uri)
    if (found := client.get_experiment_by_name(experiment)) is None:
        return {}
    wanted = f"LIKE '{study_id.record}/%'" if is_comparison else f"= '{study_id}'"
    experiment_id = str(found.experiment_id)
    runs = client.search_runs([experiment_id], f"tags.`{STUDY_TAG}` {wanted}", max_results=1)
    if not runs:
        return {}
    saved = views.found_in(found.tags, study_id.record if is_comparison else runs[0].info.run_id)
    return {"all runs": views.runs_url(root, experiment_id)} | {
        view.name: view.url(root, experiment_id) for view in saved
    }
