"""One function for each command: call its work, print the results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROGRAM = "cabs-search"
OVERRIDES = ("trials", "items", "seconds", "workers")
"""Options that stand for fields of ``search``."""


def _quickstart(options: argparse.Namespace) -> None:
    if options.language_model:
        from cabs_search.quickstart.language_model.experts import make as make_adapters

        made = make_adapters()
        options.spec = "quickstart-language-model"
        study = _run(options)
        if not options.json:
            _print_answers(study, made)
        return
    from cabs_search.quickstart.experts import make

    make()
    options.spec = "quickstart"
    _run(options)


def _print_answers(study: Path, made: Path) -> None:
    """Ask base, experts and what the search recommends the same questions."""
    from cabs_search.common.formats import table
    from cabs_search.quickstart.language_model.answers import answers
    from cabs_search.quickstart.language_model.experts import BASE
    from cabs_search.quickstart.language_model.puzzles import PUZZLES, example
    from cabs_search.spec.locations import locate
    from cabs_search.workflows.export import export_trial

    asked = [example(puzzle) for puzzle in PUZZLES]
    names = [puzzle.name for puzzle in PUZZLES]
    with TemporaryDirectory(dir=study) as folder:
        _, merged = export_trial(study, "best", Path(folder) / "merged")
        said = answers(
            locate(BASE), [made / name for name in names], merged, [one.prompt for one in asked]
        )
    print(
        "\nQuestions that nothing was tuned on, searched or confirmed with, and greedy answers:\n"
    )
    for name, one in zip(names, asked, strict=True):
        print(f"{name}: {one.question}\n")
    rows = [["", *names], ["right", *(one.answer for one in asked)]]
    rows += [[model, *texts] for model, texts in said.items()]
    print("\n".join(table(rows)))


def _run(options: argparse.Namespace) -> Path:
    from cabs_search.common.redact import without_password
    from cabs_search.reporting.terminal.leaderboard import leaderboard_text
    from cabs_search.spec.load import load
    from cabs_search.workflows.run import run

    given = {field: getattr(options, field) for field in OVERRIDES}
    spec = load(options.spec).override(**given, refine=options.refine)
    result = run(spec, options.output, address=options.address, tracking_uri=options.tracking_uri)
    folder, uri = result.folder, result.tracking_uri
    if options.json:
        places = {"folder": str(folder), "tracking_uri": without_password(uri)}
        print_json(result.leaderboard.as_dict() | places)
        return folder
    print(leaderboard_text(result.leaderboard) + "\n")
    _print_page(folder)
    print(f"See the runs:      {PROGRAM} ui {folder}")
    print(f"Print this again:  {PROGRAM} report {folder}")
    print(f"Take the best:     {PROGRAM} export {folder} --to {folder}/best")
    _print_server_links(folder, uri)
    return folder


def _compare(options: argparse.Namespace) -> None:
    from cabs_search.search.axes import experiment_name
    from cabs_search.spec.load import load
    from cabs_search.tracking.server import uri_of
    from cabs_search.workflows.compare import compare

    spec = load(options.spec).override(**{field: getattr(options, field) for field in OVERRIDES})
    folder = options.output or Path("results") / experiment_name(spec.name, options.over)
    comparison = compare(
        spec, options.over, folder, address=options.address, tracking_uri=options.tracking_uri
    )
    _print_comparison(comparison, as_json=options.json)
    if not options.json:
        _print_page(folder)
        _print_server_links(folder, options.tracking_uri or uri_of(folder))


def _print_comparison(comparison: Any, *, as_json: bool) -> None:
    from cabs_search.reporting.terminal.comparison import comparison_text

    if as_json:
        print_json(comparison.as_dict())
    else:
        print(comparison_text(comparison) + "\n")


def _print_page(folder: Path) -> None:
    """Print the path of report.html, if it was written."""
    from cabs_search.record.folder import StudyFolder

    if StudyFolder(folder).page.is_file():
        print(f"Open the report:   {StudyFolder(folder).page}")


def _plan(options: argparse.Namespace) -> None:
    from cabs_search.workflows.plan import plan

    made = plan(options.spec)
    if options.json:
        print_json(made.as_dict())
    else:
        print(made.as_text())


def _vectors(options: argparse.Namespace) -> None:
    from cabs_search.spec.load import load
    from cabs_search.workflows.vectors import check_picture, draw, vectors

    if options.picture:
        check_picture(options.picture)
    methods = vectors(load(options.spec), options.method or ())
    if options.picture:
        draw(methods, options.picture)
    if options.json:
        print_json([method.as_dict() for method in methods])
    else:
        print("\n\n".join(method.as_text() for method in methods))


def _report(options: argparse.Namespace) -> None:
    from cabs_search.record.comparison_file import is_comparison
    from cabs_search.record.versions_file import recorded_versions
    from cabs_search.reporting.html.page import write_page
    from cabs_search.reporting.terminal.leaderboard import leaderboard_text
    from cabs_search.results.comparison import Comparison
    from cabs_search.results.leaderboard import read_leaderboard
    from cabs_search.results.read_comparison import read_comparison

    folder = options.folder
    recorded_versions(folder)  # which the page needs, after the numbers are out
    results = read_comparison(folder) if is_comparison(folder) else read_leaderboard(folder)
    if isinstance(results, Comparison):
        _print_comparison(results, as_json=options.json)
    elif options.json:
        print_json(results.as_dict())
    else:
        print(leaderboard_text(results) + "\n")
    # The numbers are out before the page is tried, which may fail.
    sys.stdout.flush()
    write_page(results, folder)
    if not options.json:
        _print_page(folder)


def _sample(options: argparse.Namespace) -> None:
    from cabs_search.reporting.terminal.sampled import sampled_text
    from cabs_search.workflows.prepare import to_stderr
    from cabs_search.workflows.sample import sample

    found = sample(
        options.folder,
        runs=options.runs,
        temperature=options.temperature,
        workers=options.workers,
        address=options.address,
        tracking_uri=options.tracking_uri,
        say=to_stderr,
    )
    if options.json:
        print_json(found.as_dict())
    else:
        print(sampled_text(found) + "\n")
        _print_page(options.folder)


def _export(options: argparse.Namespace) -> None:
    from cabs_search.serving.hub import Push
    from cabs_search.workflows.export import export_trial

    if options.public and not options.push:
        raise ValueError("--public: it says how to --push, which is not given")
    # checked first: an export may take an hour
    push = Push(options.push, private=not options.public) if options.push else None
    recipe, to = export_trial(options.folder, options.trial, options.to, adapter=options.adapter)
    pushed = push.send(to) if push else None
    print_export(options, recipe, to, pushed)


def print_export(
    options: argparse.Namespace, recipe: Any, to: Path, pushed: str | None = None
) -> None:
    """Say where a merged model was written, and the address of what was uploaded."""
    from cabs_search.serving.adapter import ADAPTER, read_facts

    heads, adapter = sorted(path.name for path in to.glob("heads/*")), read_facts(to)
    if options.json:
        facts = asdict(adapter) if adapter else None
        places = {"path": str(to), "heads": heads, "adapter": facts, "hub": pushed}
        print_json(places | {"recipe": recipe.as_dict()})
        return
    paths = ", ".join(f"{to}/heads/{head}" for head in heads)
    with_heads = f"; with a head: {paths}" if heads else ""
    print(f"{recipe}\nwritten to {to}{with_heads}")
    if adapter:
        print(f"as an adapter: {to}/{ADAPTER} ({adapter})")
    if pushed:
        print(f"uploaded to {pushed}")


def _ui(options: argparse.Namespace) -> None:
    from cabs_search.common.redact import without_password
    from cabs_search.record.folder import StudyFolder
    from cabs_search.tracking.server import is_database, is_server, uri_of

    folder, uri = options.folder, uri_of(options.folder)
    is_elsewhere = is_server(uri) or is_database(uri)
    if not is_elsewhere and not StudyFolder(folder).tracking_database.is_file():
        raise ValueError(f"{folder}: holds no mlflow.db, and no address of a tracking server")
    if not is_server(uri):
        _check_free(options.port)
    root = without_password(uri) if is_server(uri) else f"http://127.0.0.1:{options.port}"
    links = _links(folder, uri, root)
    if not links:
        raise ValueError(f"{folder}: no runs are recorded yet")
    if options.json:
        print_json({"views": links, "tracking_uri": without_password(uri)})
    else:
        _print_links(links)
    if not is_server(uri):
        sys.stdout.flush()
        _serve(uri, options.port)


def _check_free(port: int) -> None:
    """Raise ValueError if a program listens at a port of this machine."""
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise ValueError(f"--port: {port} is taken; choose another") from None


def _serve(uri: str, port: int) -> None:
    """Run MLflow's UI on this machine until it, or this process, is stopped."""
    import os
    import signal
    import subprocess

    print("stop it with Ctrl-C", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    # not as an option: a password of it would stand in the list of processes
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    with subprocess.Popen(command, stdout=sys.stderr, env=environment) as server:
        signal.signal(signal.SIGTERM, lambda *_: server.terminate())
        status = server.wait()
    # MLflow ends with 0, or by the signal, when it was stopped.
    if status > 0:
        raise RuntimeError("MLflow's UI did not start; its own messages are above")


def _links(folder: Path, uri: str, root: str) -> dict[str, str]:
    """Return addresses of a folder's runs and saved views in the UI at ``root``, by name.

    Empty if there are no runs.
    """
    from cabs_search.record.comparison_file import axes_of, is_comparison
    from cabs_search.record.folder import StudyFolder, StudyId
    from cabs_search.record.outcomes import Outcomes
    from cabs_search.search.axes import experiment_name
    from cabs_search.spec.load import load
    from cabs_search.tracking.server import ui_links

    spec = load(StudyFolder(folder).spec, locations=False)
    over = axes_of(folder) if is_comparison(folder) else None
    name = experiment_name(spec.name, over) if over else spec.name
    return ui_links(
        uri,
        root.rstrip("/"),
        name,
        StudyId(Outcomes(StudyFolder(folder).outcomes, spec.tasks, must_exist=True).study_id()),
        is_comparison=over is not None,
    )


def _print_links(links: Mapping[str, str]) -> None:
    """Print a name and a whole address in each line, which a terminal makes a link."""
    width = max(map(len, links))
    for name, url in links.items():
        print(f"{name:<{width}}  {url}")


def _print_server_links(folder: Path, uri: str) -> None:
    """Print where a server shows the runs; if it does not answer, say so and go on."""
    from cabs_search.common.redact import without_password
    from cabs_search.tracking.server import is_server

    if not is_server(uri):
        return
    shown = without_password(uri)
    try:
        links = _links(folder, uri, shown)
    except Exception as error:
        print(f"MLflow at {shown} does not answer: {type(error).__name__}", file=sys.stderr)
        return
    if links:
        print()
        _print_links(links)


def print_json(value: Any) -> None:
    """Print plain values for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
