"""Where a folder's runs are tracked."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.redact import without_password
from cabs_search.tracking import views
from cabs_search.tracking.runs import STUDY_TAG

SERVER_FILE = "tracking-uri.txt"


def default_uri(folder: Path) -> str:
    """The study's own SQLite file."""
    return f"sqlite:///{folder.resolve() / 'mlflow.db'}"


def uri_of(folder: Path) -> str:
    """The tracking URI of a folder's runs: the server they were written to last, or the folder's
    own file.
    """
    kept = folder / SERVER_FILE
    return kept.read_text(encoding="utf-8").strip() if kept.is_file() else default_uri(folder)


def remember_uri(folder: Path, uri: str | None) -> None:
    """Keep a server's address in the folder, for ``uri_of``; without the password that may be in
    it.
    """
    kept = folder / SERVER_FILE
    if uri is None or not is_server(uri):
        kept.unlink(missing_ok=True)
        return
    kept.write_text(without_password(uri) + "\n", encoding="utf-8")


def is_server(uri: str) -> bool:
    """Whether a tracking URI is a server's, whose UI is there already."""
    return uri.startswith(("http://", "https://"))


def version_at(uri: str) -> str:
    """The version of the MLflow that shows the runs: of a server its own, else the one that is
    installed.
    """
    import mlflow

    if not is_server(uri):
        return str(mlflow.__version__)
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    answer = http_request(get_default_host_creds(uri), "/version", "GET")
    return str(answer.text).strip() if answer.ok else "of unknown version"


def ui_links(
    uri: str, root: str, experiment: str, study_id: str, *, is_comparison: bool
) -> dict[str, str]:
    """Addresses of a study's or comparison's runs in the UI at ``root``, by what is seen there;
    empty without runs.

    Args:
        uri: the tracking URI.
        experiment: the experiment's name.
        study_id: the study's; of a comparison, what those of its studies begin with.

    """
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return {}
    filter_ = (
        f"tags.`{STUDY_TAG}` LIKE '{study_id}/%'"
        if is_comparison
        else f"tags.`{STUDY_TAG}` = '{study_id}'"
    )
    runs = client.search_runs([found.experiment_id], filter_, max_results=1)
    if not runs:
        return {}
    saved = views.found_in(found.tags, study_id if is_comparison else str(runs[0].info.run_id))
    every = {"all runs": views.runs_url(root, str(found.experiment_id))}
    return every | {view.name: view.url(root, str(found.experiment_id)) for view in saved}
