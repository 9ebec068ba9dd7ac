"""A measured figure, how it is timed, and the ledger that prints, keeps and tabulates figures.

ratio   how many times better than the rival: its time over ours, our rate over its
over    how many times the limit we take: our time over the limit's, the limit's rate over ours
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch

from cabs_search.common.formats import table

RATES = ("/s", "/h")
"""How the units end of which more is better."""
PARTS = (
    *("limits", "masks", "materialize", "evaluate", "llm", "gradients", "search", "tracking"),
    *("memory", "size"),
)
"""Modules beside this one, each with ``measure``, in the order they run."""
ORDER = (*PARTS, "large", "gpu")
"""Parts as tables show them."""
CORES = os.cpu_count() or 1
MERGEKIT, LM_EVAL = (
    Path(__file__).parents[1] / f".venv-{name}" for name in ("mergekit", "lm-eval")
)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a figure is to reach."""

    of: Literal["ratio", "over", "value"]
    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        unit = {"ratio": " × rival", "over": " × limit", "value": ""}[self.of]
        if self.least is not None and self.most is not None:
            return f"{self.least:g} to {self.most:g}{unit}"
        return f"≥ {self.least:g}{unit}" if self.least is not None else f"≤ {self.most:g}{unit}"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row."""

    part: str
    what: str
    value: float
    unit: str
    """``s`` and ``MB`` are better small, rates (``items/s``) large."""
    rival: str = ""
    rival_value: float | None = None
    limit: str = ""
    limit_value: float | None = None
    target: Target | None = None
    note: str = ""
    when: str = ""
    commit: str = ""

    @property
    def ratio(self) -> float | None:
        """Times better than the rival."""
        return None if self.rival_value is None else self._better(self.value, self.rival_value)

    @property
    def over(self) -> float | None:
        """Times the limit."""
        return None if self.limit_value is None else self._better(self.limit_value, self.value)

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        reached = getattr(self, self.target.of)
        if reached is None:
            return None
        above = self.target.least is None or reached >= self.target.least
        return above and (self.target.most is None or reached <= self.target.most)

    def _better(self, value: float, other: float) -> float:
        """How many times better ``value`` is."""
        if not value or not other:
            return float("inf") if value != other else 1.0
        return value / other if self.unit.endswith(RATES) else other / value

    def as_dict(self) -> dict[str, Any]:
        """For bench.json."""
        target = None if self.target is None else str(self.target)
        return asdict(self) | {
            "ratio": self.ratio,
            "over_limit": self.over,
            "target_text": target,
            "met": self.met,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figure:
        """What ``as_dict`` described."""
        own = {k: v for k, v in values.items() if k in cls.__dataclass_fields__}
        return cls(**own | {"target": values["target"] and Target(**values["target"])})

    def cells(self) -> list[str]:
        """For the table."""
        return [
            self.what,
            shown(self.value, self.unit),
            self.rival,
            "" if self.rival_value is None else shown(self.rival_value, self.unit),
            "" if self.ratio is None else f"{self.ratio:.3g} ×",
            self.limit,
            "" if self.over is None else f"{self.over:.3g} ×",
            "" if self.target is None else str(self.target),
            {None: "", True: "met", False: "NOT MET"}[self.met],
        ]


HEAD = ["what", "cabs-search", "rival", "takes", "ratio", "limit", "takes × limit", "target", ""]


def shown(value: float, unit: str) -> str:
    """For people."""
    if unit == "s" and abs(value) < 1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:,.0f} {unit}".rstrip() if abs(value) >= 1000 else f"{value:.3g} {unit}".rstrip()


def interleaved(
    acts: Mapping[str, Callable[[], object]], rounds: int = 5, warm: int = 1, budget: float = 20
) -> dict[str, float]:
    """Median seconds of each act, taken in turns. An act that returns a float has timed itself.

    Args:
        rounds: how often each act is timed; twice at the least, but no more once ``budget`` seconds
            have passed.
        warm: rounds before that, not timed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    begun = time.perf_counter()
    for i in range(warm + rounds):
        if i >= warm + 2 and time.perf_counter() - begun > budget:
            break
        for name, act in acts.items():
            start = time.perf_counter()
            own = act()
            took = own if isinstance(own, float) else time.perf_counter() - start
            if i >= warm:
                seconds[name].append(took)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Torch with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def in_fresh_process(act: Callable[..., Any], *arguments: Any) -> Any:
    """What a module's function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(act, *arguments).result()


def copier(moved: int) -> Callable[[], object]:
    """An act that moves so many bytes by copying: half of them read, half written."""
    source = torch.ones(max(1, moved // 8))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def multiplier(size: int = 1536) -> tuple[Callable[[], object], float]:
    """An act that multiplies two float32 matrices, and its floating-point operations."""
    a, b, out = (torch.ones(size, size) for _ in range(3))
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def machine() -> dict[str, Any]:
    """Where and with what this runs."""
    lines = _lines("/proc/cpuinfo")
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = {name: _version(name) for name in ("torch", "numpy", "transformers", "ray")}
    found = MERGEKIT.glob("lib/python*/site-packages/mergekit-*.dist-info")
    kit = next(
        (path.name.removeprefix("mergekit-").removesuffix(".dist-info") for path in found),
        "not installed",
    )
    facts = {
        "processor": model,
        "cores": CORES,
        "memory_GiB": round(memory, 1),
        "python": platform.python_version(),
    }
    return facts | versions | {"mergekit": kit}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def revision() -> str:
    """The checkout's commit, with a + where it is changed."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


class Ledger:
    """Figures as they are measured: a line each on stderr, all of them in a file that later runs
    add to.
    """

    def __init__(self, path: Path, *, fresh: bool = False) -> None:
        """``fresh``: measure anew also what is remembered of slow rivals."""
        self.path, self.machine = path, machine()
        past = json.loads(path.read_text()) if path.is_file() else {}
        same = past.get("machine") == self.machine
        self.figures = [Figure.from_dict(f) for f in past.get("figures", ())] if same else []
        self.series: dict[str, Any] = past.get("series", {}) if same else {}
        self.rivals: dict[str, Any] = past.get("rivals", {}) if same and not fresh else {}
        self._start, self._commit = time.perf_counter(), revision()

    def begin(self, part: str) -> None:
        """Measure a part anew."""
        self.figures = [f for f in self.figures if f.part != part]
        self.say(part)

    def add(self, **values: Any) -> Figure:
        """Keep a figure and show it."""
        figure = Figure(**values, when=str(date.today()), commit=self._commit)
        self.figures.append(figure)
        self.figures.sort(key=lambda f: ORDER.index(f.part))
        self.write()
        cells = dict(zip(HEAD, figure.cells(), strict=True))
        said = [f"{cells['cabs-search']}"]
        said += [f"{cells['ratio']} {figure.rival}"] if figure.ratio is not None else []
        said += [f"{cells['takes × limit']} {figure.limit}"] if figure.over is not None else []
        said += [f"target {figure.target} {cells['']}"] if figure.target else []
        self.say(f"  {figure.what}: {', '.join(said)}")
        return figure

    def say(self, text: str) -> None:
        """A line for the one who waits."""
        print(f"[{time.perf_counter() - self._start:6.0f} s] {text}", file=sys.stderr, flush=True)

    def remember(self, rival: str, act: Callable[[], float]) -> tuple[float, str]:
        """Seconds of a rival too slow to run each time, and the day they were measured, on this
        machine.
        """
        if rival not in self.rivals:
            self.rivals[rival] = {"seconds": act(), "when": str(date.today())}
            self.write()
        return self.rivals[rival]["seconds"], self.rivals[rival]["when"]

    def write(self) -> None:
        """Keep all of it."""
        found = {
            "machine": self.machine,
            "figures": [f.as_dict() for f in self.figures],
            "series": self.series,
            "rivals": self.rivals,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")

    @property
    def facts(self) -> str:
        """Machine, versions, commits and days, in a line."""
        measured = dict.fromkeys(f"commit {f.commit}, {f.when}" for f in self.figures)
        return "; ".join([", ".join(f"{k} {v}" for k, v in self.machine.items()), *measured])

    def as_text(self) -> str:
        """For a terminal."""
        notes = dict.fromkeys(f"  {f.what}: {f.note}" for f in self.figures if f.note)
        counted = [f.met for f in self.figures if f.met is not None]
        end = f"{sum(counted)} of {len(counted)} targets met; {self.facts}"
        return "\n".join([*table([HEAD, *(f.cells() for f in self.figures)]), "", *notes, "", end])

    def as_markdown(self) -> str:
        """For a page."""
        rows = [HEAD, ["---"] * len(HEAD), *(f.cells() for f in self.figures)]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        notes = dict.fromkeys(f"- {f.what}: {f.note}" for f in self.figures if f.note)
        return "\n".join([f"{self.facts}.", "", *lines, "", *notes])
