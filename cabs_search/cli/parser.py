"""The parser of commands and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from cabs_search.merging.masks.settings import Setting

from cabs_search import __version__
from cabs_search.cli import jobs
from cabs_search.cli.commands import (
    PROGRAM,
    _compare,
    _export,
    _plan,
    _quickstart,
    _report,
    _run,
    _sample,
    _ui,
    _vectors,
)
from cabs_search.cli.convert import MERGEKIT, RECIPE, convert
from cabs_search.cli.merge import merge

SPEC = "a YAML file, or the name of one in search_spaces/"
"""Help on SPEC."""
OF_STUDY = ("candidates in all, baselines among them", "the study's folder (default: results/NAME)")
OF_COMPARISON = (
    "candidates of each value, shared λ among them",
    "the folder (default: results/NAME-over-AXIS)",
)
"""Help on --trials and --output."""
TRACKING_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "file", "databricks")
"""Beginnings of addresses that MLflow takes."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(*, with_settings: bool = True) -> argparse.ArgumentParser:
    """Make the parser of all commands and options.

    Args:
        with_settings: whether ``merge`` has an option for each setting of a mask rule; these take a
            moment to load, which no other command should wait for.

    """
    root = _Parser(
        PROGRAM, description="Find the best way to merge fine-tuned models that share a base."
    )
    root.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = root.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, act: Any, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        made.set_defaults(act=act)
        made.add_argument("--json", action="store_true", help="print the result as JSON")
        return made

    made = command(
        "quickstart",
        _quickstart,
        "make four experts from real text once, then search how to merge them",
    )
    made.add_argument(
        "--language-model",
        action="store_true",
        help="three adapters of a small chat model in place of four encoders (needs packages)",
    )
    _add_search(made, *OF_STUDY)
    _add_refine(made)

    made = command(
        "run", _run, "search a space; run again on the same folder, it goes on where it stopped"
    )
    made.add_argument("spec", metavar="SPEC", help=SPEC)
    _add_search(made, *OF_STUDY)
    _add_refine(made)

    made = command(
        "compare", _compare, "the same search for each method, order, n:m or density, and one table"
    )
    made.add_argument("spec", metavar="SPEC", help=SPEC)
    made.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="method|order|nm|density",
        help="what to compare; twice for two crossed; AXIS=V,V for some values only",
    )
    _add_search(made, *OF_COMPARISON)

    made = command("plan", _plan, "show what a search would do and need, without doing it")
    made.add_argument("spec", metavar="SPEC")

    made = command(
        "vectors",
        _vectors,
        "build or inspect a space's pruned vectors: density, overlap, angles, bytes",
    )
    made.add_argument("spec", metavar="SPEC")
    made.add_argument(
        "--method", action="append", metavar="M", help="these methods only, of the space or not"
    )
    made.add_argument(
        "--picture", type=Path, metavar="FILE", help="draw them as well: a .png, .svg or .pdf"
    )

    made = command(
        "report", _report, "print a study's leaderboard, or a comparison, and write report.html"
    )
    made.add_argument("folder", type=Path, metavar="DIR")

    made = command(
        "sample", _sample, "sample a study's finalists some times, where they generate texts"
    )
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--runs", type=_count, default=10, metavar="N", help="of each (default: 10)")
    made.add_argument(
        "--temperature", type=float, default=0.7, metavar="T", help="above 0 (default: 0.7)"
    )
    _add_workers(made)
    _add_address(made)

    made = command("merge", merge, "merge experts by one recipe, without a search")
    _add_merge(made, with_settings=with_settings)

    made = command("convert", convert, "write a recipe as mergekit's YAML, or the other way")
    _add_convert(made)

    made = command(
        "export", _export, "write a searched candidate as a checkpoint that transformers loads"
    )
    _add_export(made)

    _add_jobs(command)

    made = command("ui", _ui, "open a study's runs in MLflow's UI")
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument("--port", type=_port, default=5000)
    return root


def _mask_settings() -> Iterable[Setting]:
    from cabs_search.merging.masks.rules import SETTINGS

    return SETTINGS.values()


def _add_jobs(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands for searches that run as jobs of a Ray cluster."""
    made = command("submit", jobs.submit, "have a Ray cluster search a space, as a job")
    made.add_argument("spec", metavar="SPEC", help=SPEC)
    _add_cluster(made, required=True)
    made.add_argument(
        "--output",
        required=True,
        type=_absolute,
        metavar="DIR",
        help="a folder of the head node, as an absolute path",
    )
    made.add_argument(
        "--over", action="append", metavar="AXIS", help="compare, as `compare` does, not `run`"
    )
    _add_limits(made, OF_STUDY[0])
    made.add_argument(
        "--shared",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a folder that the head node has at this path (repeat)",
    )
    made.add_argument("--follow", action="store_true", help="print the log until the job ends")

    made = command("status", jobs.status, "say how far a search is")
    made.add_argument("folder", metavar="DIR", help="its folder; with --address, of the head node")
    _add_cluster(made, required=False)

    made = command("logs", jobs.logs, "print a job's log until it ends")
    made.add_argument("job", metavar="JOB")
    _add_cluster(made, required=True)

    made = command("stop", jobs.stop, "end a job; submitted again, its search goes on")
    made.add_argument("job", metavar="JOB")
    _add_cluster(made, required=True)


def _add_cluster(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument(
        "--address",
        required=required,
        type=_dashboard,
        metavar="URL",
        help="the cluster's dashboard, such as http://HEAD:8265",
    )


def _add_search(command: argparse.ArgumentParser, trials: str, output: str) -> None:
    """Add the options of commands that search, with help on two of them."""
    _add_limits(command, trials)
    command.add_argument("--output", type=_folder, metavar="DIR", help=output)
    _add_address(command)


def _add_address(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--address", metavar="auto|HOST:PORT", help="join the Ray cluster that runs there"
    )


def _add_limits(command: argparse.ArgumentParser, trials: str) -> None:
    command.add_argument("--trials", type=_count, metavar="N", help=trials)
    command.add_argument("--items", type=_count, metavar="N", help="items to score in the search")
    command.add_argument("--seconds", type=_count, metavar="N", help="time of the search")
    _add_workers(command)


def _add_workers(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--workers", type=_count, metavar="N", help="Ray workers (default: one per core)"
    )
    command.add_argument(
        "--tracking-uri",
        type=_tracking,
        metavar="URI",
        help="MLflow's (default: CABS_SEARCH_TRACKING_URI, else SQLite in the folder)",
    )


def _add_refine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--refine", action="store_true", help="refine λ by gradient after the search"
    )


def _add_merge(made: argparse.ArgumentParser, *, with_settings: bool) -> None:
    made.add_argument("--base", metavar="B", help="a folder or a hub id")
    made.add_argument(
        "--expert", action="append", default=[], type=_pair, metavar="NAME=PATH", help="for each"
    )
    made.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a YAML file with models, method, settings and λ, such as an export's recipe.yaml",
    )
    made.add_argument("--method", metavar="M", help="cabs (default), task-arithmetic, ties, ...")
    for setting in _mask_settings() if with_settings else ():
        made.add_argument(f"--{setting.name}", metavar=setting.metavar, help=setting.help)
    made.add_argument("--overlap-merge", metavar="sum|ties")
    made.add_argument(
        "--vocabulary",
        choices=("same", "common-rows"),
        help="of language models with other numbers of tokens (default: refuse them)",
    )
    made.add_argument(
        "--pickled",
        action="append",
        default=[],
        metavar="NAME",
        help="an expert, or base, whose weights may be a pickled .bin file (repeat)",
    )
    made.add_argument(
        "--lambda",
        dest="lambdas",
        action="append",
        default=[],
        type=_pair,
        metavar="NAME=X",
        help="λ of an expert (default 1)",
    )
    made.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: the base's own"
    )
    made.add_argument(
        "--to", "--output", required=True, type=Path, metavar="PATH", help="a new folder"
    )


def _add_convert(made: argparse.ArgumentParser) -> None:
    made.add_argument("file", type=Path, metavar="FILE")
    made.add_argument(
        "--to", dest="form", choices=(MERGEKIT, RECIPE), help="default: the form that FILE has not"
    )
    made.add_argument("--output", type=Path, metavar="FILE", help="default: print it")
    made.add_argument(
        "--lossy", action="store_true", help="even if what is lost changes the merged weights"
    )


def _add_export(made: argparse.ArgumentParser) -> None:
    made.add_argument("folder", type=Path, metavar="DIR")
    made.add_argument(
        "--trial", default="best", metavar="best|N|ROW", help="its number; of a comparison, its row"
    )
    made.add_argument("--to", required=True, type=Path, metavar="PATH", help="a new folder")
    made.add_argument(
        "--adapter",
        type=_rank,
        metavar="exact|RANK",
        help="as a LoRA adapter as well: without error, or the nearest one of a rank",
    )
    made.add_argument(
        "--push", metavar="OWNER/NAME", help="upload it to the hub, with the token in HF_TOKEN"
    )
    made.add_argument("--public", action="store_true", help="not as a private repository")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number above 0 is needed, but got {text}")
    return int(text)


def _rank(text: str) -> int | str:
    return text if text == "exact" else _count(text)


def _absolute(text: str) -> str:
    if not Path(text).is_absolute():
        raise argparse.ArgumentTypeError(f"an absolute path is needed, but got {text or 'nothing'}")
    return text


def _folder(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError("a folder is needed, but got nothing")
    return Path(text)


def _tracking(text: str) -> str:
    scheme, mark, _ = text.partition("://")
    if mark and scheme.partition("+")[0] not in TRACKING_SCHEMES:
        schemes = ", ".join(TRACKING_SCHEMES)
        raise argparse.ArgumentTypeError(f"one of {schemes} is needed, but got {scheme}://")
    return text


def _dashboard(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"http://HOST:PORT is needed, but got {text}")
    return text


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"a number from 1 to 65535 is needed, but got {text}")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    name, mark, value = text.partition("=")
    if not (name and mark and value):
        raise argparse.ArgumentTypeError(f"NAME=VALUE is needed, but got {text}")
    return name, value
