"""What each command calls and prints."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = "cabs-search"


def _quickstart(options: argparse.Namespace) -> None:
    from cabs_search.quickstart.experts import make

    make()
    options.spec = "quickstart"
    _run(options)


def _run(options: argparse.Namespace) -> None:
    from cabs_search.common.redact import without_password
    from cabs_search.reporting.terminal.leaderboard import leaderboard_text
    from cabs_search.spec.load import load
    from cabs_search.workflows.run import run

    spec = load(options.spec).override(trials=options.trials, workers=options.workers)
    found = run(spec, options.output, address=options.address, tracking_uri=options.tracking_uri)
    if options.json:
        _print_json(
            found.leaderboard.as_dict()
            | {
                "folder": str(found.folder),
                "tracking_uri": without_password(found.tracking_uri),
            }
        )
        return
    folder = found.folder
    print(leaderboard_text(found.leaderboard) + "\n")
    _print_page(folder)
    print(f"See the runs:      {PROGRAM} ui {folder}")
    print(f"Print this again:  {PROGRAM} report {folder}")
    print(f"Take the best:     {PROGRAM} export {folder} --to {folder}/best")
    _print_server_links(folder, found.tracking_uri)


def _compare(options: argparse.Namespace) -> None:
    from cabs_search.search.axes import experiment_name
    from cabs_search.spec.load import load
    from cabs_search.workflows.compare import compare

    spec = load(options.spec).override(trials=options.trials, workers=options.workers)
    found = compare(
        spec,
        options.over,
        options.output,
        address=options.address,
        tracking_uri=options.tracking_uri,
    )
    folder = options.output or Path("results") / experiment_name(spec.name, options.over)
    _print_comparison(options, found)
    if not options.json:
        _print_page(folder)
    if options.tracking_uri and not options.json:
        _print_server_links(folder, options.tracking_uri)


def _print_comparison(options: argparse.Namespace, found: Any) -> None:
    from cabs_search.reporting.terminal.comparison import comparison_text

    if options.json:
        _print_json(found.as_dict())
    else:
        print(comparison_text(found) + "\n")


def _print_page(folder: Path) -> None:
    """Where the page is; not where there is none, which was said."""
    from cabs_search.record.folder import StudyFolder

    if StudyFolder(folder).page.is_file():
        print(f"Open the report:   {StudyFolder(folder).page}")


def _plan(options: argparse.Namespace) -> None:
    from cabs_search.workflows.plan import plan

    found = plan(options.spec)
    if options.json:
        _print_json(found.as_dict())
    else:
        print(found.as_text())


def _vectors(options: argparse.Namespace) -> None:
    from cabs_search.spec.load import load
    from cabs_search.workflows.vectors import check_picture, draw, vectors

    if options.picture:
        check_picture(options.picture)
    found = vectors(load(options.spec), options.method or ())
    if options.picture:
        draw(found, options.picture)
    if options.json:
        _print_json([f.as_dict() for f in found])
    else:
        print("\n\n".join(f.as_text() for f in found))


def _report(options: argparse.Namespace) -> None:
    from cabs_search.record.comparison_file import is_comparison
    from cabs_search.reporting.html.page import write_page
    from cabs_search.reporting.terminal.leaderboard import leaderboard_text
    from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
    from cabs_search.results.read_comparison import read_comparison

    of_many = is_comparison(options.folder)
    found = read_comparison(options.folder) if of_many else read_leaderboard(options.folder)
    if not isinstance(found, Leaderboard):
        _print_comparison(options, found)
    elif options.json:
        _print_json(found.as_dict())
    else:
        print(leaderboard_text(found) + "\n")
    sys.stdout.flush()
    write_page(found, options.folder)  # behind the numbers, which are there whatever becomes of it
    if not options.json:
        _print_page(options.folder)


def _merge(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from cabs_search.merging.family import Family
    from cabs_search.merging.masks.rules import SETTINGS
    from cabs_search.merging.recipe import make_method, make_recipe
    from cabs_search.serving.export import export
    from cabs_search.spec.fields import NAME_PATTERN
    from cabs_search.spec.locations import locate

    experts = _mapping("--expert", options.expert)
    for name in experts:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(
                f"--expert: a name must be letters, digits, _ and -, a letter first, but got {name}"
            )
    unknown = [name for name, _ in options.lambdas if name not in experts]
    if unknown:
        raise ValueError(
            f"--lambda: an expert must be named ({', '.join(experts)}), but got {unknown[0]}"
        )
    lambdas = dict.fromkeys(experts, 1.0) | {
        k: _number(v) for k, v in _mapping("--lambda", options.lambdas).items()
    }
    settings = {name: getattr(options, name) for name in SETTINGS}
    method = make_method(
        options.method, tuple(experts), overlap_merge=options.overlap_merge, **settings
    )
    if method.mask.calibration != "none":
        raise ValueError(
            f"--method: {options.method} needs calibration items, which only a study has; use run"
            " or compare"
        )
    recipe = make_recipe(method, lambdas)
    family = Family.open(
        locate(options.base), {name: locate(path) for name, path in experts.items()}
    )
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with tqdm(
        total=family.alignment.weights,
        unit="weight",
        unit_scale=True,
        desc="merge",
        file=sys.stderr,
    ) as bar:
        to = export(family, recipe, options.to, dtype=dtype, progress=bar.update)
    _print_export(options, recipe, to)


def _export(options: argparse.Namespace) -> None:
    from cabs_search.workflows.export import export_trial

    recipe, to = export_trial(options.folder, options.trial, options.to)
    _print_export(options, recipe, to)


def _print_export(options: argparse.Namespace, recipe: Any, to: Path) -> None:
    heads = sorted(p.name for p in (to / "heads").iterdir())
    if options.json:
        _print_json({"path": str(to), "recipe": recipe.as_dict(), "heads": heads})
    else:
        print(
            f"{recipe}\nwritten to {to}; with a head: {', '.join(f'{to}/heads/{h}' for h in heads)}"
        )


def _ui(options: argparse.Namespace) -> None:
    import subprocess

    from cabs_search.record.folder import StudyFolder
    from cabs_search.tracking.server import is_server, uri_of

    uri = uri_of(options.folder)
    if not is_server(uri) and not StudyFolder(options.folder).tracking_database.is_file():
        raise ValueError(
            f"{options.folder}: holds no mlflow.db, and no address of a tracking server"
        )
    found = _links(
        options.folder, uri, uri if is_server(uri) else f"http://127.0.0.1:{options.port}"
    )
    if not found:
        raise ValueError(f"{options.folder}: no runs are recorded yet")
    if options.json:
        _print_json({"views": found, "tracking_uri": uri})
    else:
        _print_links(found)
    if is_server(uri):
        return
    sys.stdout.flush()
    print("stop it with Ctrl-C", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "ui",
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
    ]
    if subprocess.run(
        [*command, "--port", str(options.port)], check=False, stdout=sys.stderr
    ).returncode:
        raise RuntimeError(
            f"MLflow's UI did not start; is port {options.port} taken? Choose another with --port"
        )


def _links(folder: Path, uri: str, root: str) -> dict[str, str]:
    """Addresses of a folder's runs and saved views in the UI at ``root``, by name; empty where
    there are no runs.
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
        StudyId(Outcomes(StudyFolder(folder).outcomes, spec.tasks).study_id()),
        is_comparison=over is not None,
    )


def _print_links(found: Mapping[str, str]) -> None:
    """A name and an address a line; addresses whole, so that a terminal opens them."""
    width = max(map(len, found))
    for name, url in found.items():
        print(f"{name:<{width}}  {url}")


def _print_server_links(folder: Path, uri: str) -> None:
    """Where the runs are seen, of those kept at a server; one that is down costs no result."""
    from cabs_search.common.redact import without_password
    from cabs_search.tracking.server import is_server

    if not is_server(uri):
        return
    shown = without_password(uri)
    try:
        found = _links(folder, uri, shown)
    except Exception as error:
        print(f"MLflow at {shown} does not answer: {type(error).__name__}", file=sys.stderr)
        return
    if found:
        print()
        _print_links(found)


def _mapping(option: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{option}: {name} is given twice")
    return dict(pairs)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--lambda: a number is needed, but got {text}") from None


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
