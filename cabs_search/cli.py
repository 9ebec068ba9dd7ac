"""The command line: parse, call, print. Results go to stdout, progress and logs to stderr.

Exit status: 0; 1 where the work failed; 2 where the user's input is wrong, with one line that says what to change.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "cabs-search"
ONE = ("candidates in all, baselines among them", "the study's folder (default: results/NAME)")
EACH = ("candidates of each value, shared λ among them", "the folder (default: results/NAME-over-AXIS)")
"""Help on --trials and --output."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # λ on a terminal that has none
    options = parser().parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore")
    warnings.filterwarnings("default", module="cabs_search")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        options.act(options)
    except ValueError as error:
        return _fail(_named(options, error), 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return _fail(RuntimeError("interrupted; the same command goes on where it stopped"), 130)
    except Exception as error:
        return _fail(error, 1)
    return 0


FIELDS = re.compile(r"(space|tasks|experts|baselines|search|base|device|dtype|seed)\b[^ ]*:")


def _named(options: argparse.Namespace, error: ValueError) -> ValueError:
    """An error in a spec's field, found after the spec was read, with the spec's name."""
    spec = getattr(options, "spec", None)
    return ValueError(f"{spec}: {error}") if spec and FIELDS.match(str(error)) else error


def _fail(error: BaseException, status: int) -> int:
    if os.environ.get("CABS_SEARCH_DEBUG"):
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    expected = isinstance(error, (ValueError, RuntimeError, OSError))
    print(f"{PROGRAM}: {text if expected else f'{type(error).__name__}: {text}'}", file=sys.stderr)
    if not expected:
        print("set CABS_SEARCH_DEBUG=1 to see where it happened", file=sys.stderr)
    return status


def parser() -> argparse.ArgumentParser:
    """Every command and its options."""
    root = _Parser(PROGRAM, description="Find the best way to merge fine-tuned models that share a base.")
    root.add_argument("--version", action="version", version=f"{PROGRAM} {_version()}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, act: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(act=act)
        made.add_argument("--json", action="store_true", help="print the result as JSON")
        return made

    for name, act, text, trials, folder in (
        ("quickstart", _quickstart, "make four experts from real text once, then search how to merge them", *ONE),
        ("run", _run, "search a space; run again on the same folder, it goes on where it stopped", *ONE),
        ("compare", _compare, "the same search for each method, order, n:m or density, and one table", *EACH),
    ):
        made = command(name, act, text)
        if name != "quickstart":
            made.add_argument("spec", metavar="SPEC", help="a YAML file, or the name of one in search_spaces/")
        if name == "compare":
            made.add_argument(
                "--over",
                action="append",
                required=True,
                metavar="method|order|nm|density",
                help="what to compare; twice for two crossed; AXIS=V,V for some values only",
            )
        made.add_argument("--trials", type=_count, metavar="N", help=trials)
        made.add_argument("--workers", type=_count, metavar="N", help="Ray workers (default: one for each core)")
        made.add_argument("--output", type=Path, metavar="DIR", help=folder)
        made.add_argument("--address", help="join a Ray cluster that runs, such as auto or ray://HOST:10001")
        made.add_argument("--tracking-uri", metavar="URI", help="MLflow's (default: SQLite in the folder)")

    made = command("plan", _plan, "show what a search would do and need, without doing it")
    made.add_argument("spec", metavar="SPEC")
    made = command("vectors", _vectors, "build or inspect a space's pruned vectors: density, overlap, angles, bytes")
    made.add_argument("spec", metavar="SPEC")
    made.add_argument("--method", action="append", metavar="M", help="these methods only, of the space or not")
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw them as well: a .png, .svg or .pdf")
    made = command("report", _report, "print a study's leaderboard, or a comparison, and write report.html")
    made.add_argument("folder", type=Path, metavar="DIR")

    made = command("merge", _merge, "merge experts by one recipe, without a search")
    made.add_argument("--base", required=True, metavar="B", help="a folder or a hub id")
    made.add_argument("--expert", required=True, action="append", type=_pair, metavar="NAME=PATH")
    made.add_argument("--method", default="cabs", metavar="M", help="cabs (default), task-arithmetic, ties, ...")
    made.add_argument("--nm", default="64:256", metavar="N:M", help="weights kept of every M (default 64:256)")
    made.add_argument("--density", type=float, metavar="D", help="share kept, by methods without n:m (default: n/m)")
    made.add_argument("--order", metavar="A,B", help="pruning order (default: as the experts are given)")
    made.add_argument("--overlap", default="fill", metavar="fill|drop")
    made.add_argument("--overlap-merge", default="sum", metavar="sum|ties")
    made.add_argument("--tail", default="keep", metavar="keep|drop")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="of random masks (default 0)")
    made.add_argument(
        "--lambda",
        dest="lambdas",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=X",
        help="λ of an expert (default 1)",
    )
    made.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: the base's own")
    made.add_argument("--to", required=True, type=Path, metavar="PATH", help="a new folder")

    made = command("export", _export, "write a searched candidate as a checkpoint that transformers loads")
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--trial", default="best", metavar="best|N|ROW", help="its number; of a comparison, its row")
    made.add_argument("--to", required=True, type=Path, metavar="PATH", help="a new folder")

    made = command("ui", _ui, "open a study's runs in MLflow's UI")
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--port", type=_port, default=5000)
    return root


def _quickstart(options: argparse.Namespace) -> None:
    from cabs_search.quickstart.experts import make

    make()
    options.spec = "quickstart"
    _run(options)


def _run(options: argparse.Namespace) -> None:
    from cabs_search.launch import run
    from cabs_search.locations import without_password
    from cabs_search.report import as_text
    from cabs_search.spec import load

    spec = load(options.spec).override(trials=options.trials, workers=options.workers)
    found = run(spec, options.output, address=options.address, tracking_uri=options.tracking_uri)
    if options.json:
        _print_json(
            found.leaderboard.as_dict()
            | {"folder": str(found.folder), "tracking_uri": without_password(found.tracking_uri)}
        )
        return
    folder = found.folder
    print(as_text(found.leaderboard) + "\n")
    _print_page(folder)
    print(f"See the runs:      {PROGRAM} ui {folder}")
    print(f"Print this again:  {PROGRAM} report {folder}")
    print(f"Take the best:     {PROGRAM} export {folder} --to {folder}/best")
    _print_server_links(folder, found.tracking_uri)


def _compare(options: argparse.Namespace) -> None:
    from cabs_search.comparison import experiment_name
    from cabs_search.launch import compare
    from cabs_search.spec import load

    spec = load(options.spec).override(trials=options.trials, workers=options.workers)
    found = compare(spec, options.over, options.output, address=options.address, tracking_uri=options.tracking_uri)
    folder = options.output or Path("results") / experiment_name(spec, options.over)
    _print_comparison(options, found)
    if not options.json:
        _print_page(folder)
    if options.tracking_uri and not options.json:
        _print_server_links(folder, options.tracking_uri)


def _print_comparison(options: argparse.Namespace, found: Any) -> None:
    from cabs_search.comparison import as_text

    if options.json:
        _print_json(found.as_dict())
    else:
        print(as_text(found) + "\n")


def _print_page(folder: Path) -> None:
    """Where the page is; not where there is none, which was said."""
    if (folder / "report.html").is_file():
        print(f"Open the report:   {folder / 'report.html'}")


def _plan(options: argparse.Namespace) -> None:
    from cabs_search.plan import plan

    found = plan(options.spec)
    if options.json:
        _print_json(found.as_dict())
    else:
        print(found.as_text())


def _vectors(options: argparse.Namespace) -> None:
    from cabs_search import diagnose
    from cabs_search.spec import load

    if options.picture:
        diagnose.check_picture(options.picture)
    found = diagnose.vectors(load(options.spec), options.method or ())
    if options.picture:
        diagnose.draw(found, options.picture)
    if options.json:
        _print_json([f.as_dict() for f in found])
    else:
        print("\n\n".join(f.as_text() for f in found))


def _report(options: argparse.Namespace) -> None:
    from cabs_search import comparison, page
    from cabs_search.report import Leaderboard, as_text, leaderboard

    of_many = comparison.is_comparison(options.folder)
    found = comparison.read(options.folder) if of_many else leaderboard(options.folder)
    if not isinstance(found, Leaderboard):
        _print_comparison(options, found)
    elif options.json:
        _print_json(found.as_dict())
    else:
        print(as_text(found) + "\n")
    sys.stdout.flush()
    page.write(found, options.folder)  # behind the numbers, which are there whatever becomes of it
    if not options.json:
        _print_page(options.folder)


def _merge(options: argparse.Namespace) -> None:
    import torch
    from tqdm import tqdm

    from cabs_search.export import export
    from cabs_search.locations import locate
    from cabs_search.recipe import make_method, make_recipe
    from cabs_search.sparsify import CALIBRATED, parse_nm
    from cabs_search.spec import NAME_PATTERN
    from cabs_search.store import Family

    experts = _mapping("--expert", options.expert)
    for name in experts:
        if not re.fullmatch(NAME_PATTERN, name):
            raise ValueError(f"--expert: a name must be letters, digits, _ and -, a letter first, but got {name}")
    unknown = [name for name, _ in options.lambdas if name not in experts]
    if unknown:
        raise ValueError(f"--lambda: an expert must be named ({', '.join(experts)}), but got {unknown[0]}")
    lambdas = dict.fromkeys(experts, 1.0) | {k: _number(v) for k, v in _mapping("--lambda", options.lambdas).items()}
    order = options.order.split(",") if options.order else None
    method = make_method(
        options.method,
        tuple(experts),
        nm=parse_nm(options.nm),
        density=options.density,
        order=order,
        overlap=options.overlap,
        overlap_merge=options.overlap_merge,
        tail=options.tail,
        seed=options.seed,
    )
    if isinstance(method.mask, CALIBRATED):
        raise ValueError(
            f"--method: {options.method} needs calibration items, which only a study has; use run or compare"
        )
    recipe = make_recipe(method, lambdas)
    family = Family.open(locate(options.base), {name: locate(path) for name, path in experts.items()})
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with tqdm(total=family.alignment.weights, unit="weight", unit_scale=True, desc="merge", file=sys.stderr) as bar:
        to = export(family, recipe, options.to, dtype=dtype, progress=bar.update)
    _print_export(options, recipe, to)


def _export(options: argparse.Namespace) -> None:
    from cabs_search.launch import export_trial

    recipe, to = export_trial(options.folder, options.trial, options.to)
    _print_export(options, recipe, to)


def _print_export(options: argparse.Namespace, recipe: Any, to: Path) -> None:
    heads = sorted(p.name for p in (to / "heads").iterdir())
    if options.json:
        _print_json({"path": str(to), "recipe": recipe.as_dict(), "heads": heads})
    else:
        print(f"{recipe}\nwritten to {to}; with a head: {', '.join(f'{to}/heads/{h}' for h in heads)}")


def _ui(options: argparse.Namespace) -> None:
    import subprocess

    from cabs_search.tracking import is_server, uri_of

    uri = uri_of(options.folder)
    if not is_server(uri) and not (options.folder / "mlflow.db").is_file():
        raise ValueError(f"{options.folder}: holds no mlflow.db, and no address of a tracking server")
    found = _links(options.folder, uri, uri if is_server(uri) else f"http://127.0.0.1:{options.port}")
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
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    if subprocess.run([*command, "--port", str(options.port)], check=False, stdout=sys.stderr).returncode:
        raise RuntimeError(f"MLflow's UI did not start; is port {options.port} taken? Choose another with --port")


def _links(folder: Path, uri: str, root: str) -> dict[str, str]:
    """Addresses of a folder's runs and saved views in the UI at ``root``, by name; empty where there are no runs."""
    from cabs_search import comparison
    from cabs_search.outcomes import Outcomes
    from cabs_search.spec import load
    from cabs_search.tracking import links

    spec = load(folder / "spec.yaml", locations=False)
    over = comparison.axes_of(folder) if comparison.is_comparison(folder) else None
    name = comparison.experiment_name(spec, over) if over else spec.name
    return links(uri, root.rstrip("/"), name, Outcomes(folder / "outcomes").study_id(), is_comparison=over is not None)


def _print_links(found: Mapping[str, str]) -> None:
    """A name and an address a line; addresses whole, so that a terminal opens them."""
    width = max(map(len, found))
    for name, url in found.items():
        print(f"{name:<{width}}  {url}")


def _print_server_links(folder: Path, uri: str) -> None:
    """Where the runs are seen, of those kept at a server; one that is down costs no result."""
    from cabs_search.locations import without_password
    from cabs_search.tracking import is_server

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


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, but got {text}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a number from 1 to 65535 is needed, but got {text}")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not (name and mark and value):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is needed, but got {text}")
    return name, value


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


def _version() -> str:
    from cabs_search import __version__

    return __version__


def entry() -> NoReturn:
    """The console script."""
    sys.exit(main())


if __name__ == "__main__":
    entry()
