"""Vectors and merges of Mistral-7B's shapes as a stream, in bounded memory: ``make bench-large``
(points 8 and 9).

The limit is enforced: each step runs in a process whose private memory (RLIMIT_DATA) may be
--memory GiB above the files that it maps, which count in it as torch maps them copy-on-write. What
is reported is the peak of memory that is no file's (RssAnon), looked at 20 times a second; pages of
mapped files are page cache, which the kernel takes back.

Each step takes turns with merely reading the same files and writing as many bytes, in pieces of
PIECE. Before either the files' pages are dropped: both read from the disk.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import families, program, size
from benchmarks.figures import CORES, Ledger, Target, in_fresh_process
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.chunks import keep_memory
from cabs_search.merging.family import Family
from cabs_search.merging.masks.settings import parse_nm
from cabs_search.merging.method import Method, make_method
from cabs_search.merging.recipe import make_recipe
from cabs_search.serving.export import export
from cabs_search.spec.locations import cache_folder
from cabs_search.workflows.vectors import inspect

DTYPE = torch.bfloat16
SPARE = 10 << 30
"""Bytes of disk left alone."""
PIECE = 16 << 20


class Peak:
    """The most private memory of this process, by RssAnon."""

    def __enter__(self) -> Peak:
        self.bytes, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, now)
            if self._done.wait(0.05):
                return

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def limited(memory: int, mapped: int) -> None:
    """No more private memory for this process than ``memory`` bytes beyond the files it maps."""
    resource.setrlimit(resource.RLIMIT_DATA, (memory + mapped, memory + mapped))


def build(
    root: Path, experts: Mapping[str, Path], method: Method, memory: int
) -> tuple[float, int, str]:
    """Seconds of hashing the checkpoints and building every entry; the peak of private memory, also
    of the command ``vectors``, which looks at all of them again; and how long parts took.
    """
    keep_memory()
    torch.set_num_threads(CORES)
    limited(memory, _bytes(root))
    with Peak() as peak:
        start = time.perf_counter()
        family = Family.open(root / "models" / "base", experts)
        program.hash_models(family)
        hashed = time.perf_counter() - start
        cache = VectorCache(root / "out")
        with _bar(family.alignment.weights, "building entries") as bar:
            program.ensure(cache, family, method, bar.update)
        built = time.perf_counter() - start
        inspect(family, cache, method)
        more = time.perf_counter() - start - built
    note = f"{hashed:.0f} s of it hash the checkpoints; statistics of the vectors {more:.0f} s more"
    return built, peak.bytes, note


def merge(
    root: Path, experts: Mapping[str, Path], method: Method, memory: int
) -> tuple[float, int, str]:
    """Seconds of writing a merged model, as ``merge`` and ``export`` do it, and the peak of private
    memory.
    """
    keep_memory()
    torch.set_num_threads(CORES)
    limited(memory, _bytes(root))
    with Peak() as peak:
        start = time.perf_counter()
        family = Family.open(root / "models" / "base", experts)
        recipe = make_recipe(method, dict.fromkeys(experts, 1.2))
        with _bar(family.alignment.weights, "merging") as bar:
            export(family, recipe, root / "out", progress=bar.update)
        return time.perf_counter() - start, peak.bytes, ""


def read_and_write(models: Path, written: int, to: Path) -> float:
    """Seconds of reading the files of all models, and of writing and syncing as many bytes as a
    step writes.
    """
    piece, start = bytearray(PIECE), time.perf_counter()
    for path in sorted(models.rglob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(piece):
                pass
    with to.open("wb", buffering=0) as file:
        for _ in range(written // PIECE):
            file.write(piece)
        file.write(piece[: written % PIECE])
        os.fsync(file.fileno())
    return time.perf_counter() - start


def drop_pages(models: Path) -> None:
    """Let the next step read the models from the disk."""
    for path in models.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _bar(weights: int, what: str) -> Any:
    return tqdm(
        total=weights, unit="weight", unit_scale=True, desc=what, file=sys.stderr, mininterval=1
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def needed(weights: int, experts: int, nm: tuple[int, int]) -> int:
    """Bytes of disk: bfloat16 checkpoints, and entries of float32 values with at most a bit a
    weight, or else the merged model.
    """
    models = (experts + 1) * weights * DTYPE.itemsize
    entries = experts * (int(weights * 4 * nm[0] / nm[1]) + weights // 8)
    return models + max(entries, weights * DTYPE.itemsize) + SPARE


def measure(
    ledger: Ledger, layers: int, experts: int, nm: tuple[int, int], memory: int, rounds: int
) -> None:
    """Make the family, build and merge. Raises ValueError where the disk is too small."""
    shapes = families.mistral(layers)
    weights = families.numel(shapes)
    (cache_folder() / "bench").mkdir(parents=True, exist_ok=True)
    free, wanted = shutil.disk_usage(cache_folder() / "bench").free, needed(weights, experts, nm)
    said = (
        f"{weights / 1e9:.2f} G weights with {experts} experts need {wanted / 1e9:.0f} GB of disk"
    )
    if wanted > free:
        raise ValueError(
            f"{said}, but {free / 1e9:.0f} GB are free in {cache_folder()}; --layers makes it"
            " smaller"
        )
    ledger.say(f"{said}; {free / 1e9:.0f} GB are free")
    with families.scratch() as root:
        with _bar(weights, "making checkpoints") as bar:
            base, made = families.write(root / "models", shapes, experts, DTYPE, bar.update)
        for folder in (base, *made.values()):
            families.mistral_config(shapes).save_pretrained(folder)
        names = tuple(made)
        cabs = make_method("cabs", names, nm=nm)
        steps: list[tuple[str, Callable[..., Any], Method]] = [
            (f"vectors, cabs {nm[0]}:{nm[1]}", build, cabs),
            (f"merge, cabs {nm[0]}:{nm[1]}", merge, cabs),
            ("merge, task-arithmetic", merge, make_method("task-arithmetic", names)),
        ]
        for what, act, method in steps:
            what = f"{what}, {layers} layers ({weights / 1e9:.2f} G weights), {experts} experts"
            _in_turns(ledger, what, partial(act, root, made, method, memory), root, memory, rounds)


def _in_turns(
    ledger: Ledger, what: str, act: Callable[[], Any], root: Path, memory: int, rounds: int
) -> None:
    """Measure a step, each time in a fresh process, and the reading and writing of its bytes."""
    ours, theirs, peaks = [], [], []
    for _ in range(rounds):
        drop_pages(root / "models")
        seconds, peak, note = in_fresh_process(act)
        ours.append(seconds)
        peaks.append(peak)
        written = _bytes(root / "out")
        shutil.rmtree(root / "out")
        drop_pages(root / "models")
        theirs.append(read_and_write(root / "models", written, root / "copy"))
        (root / "copy").unlink()
    moved = f"{(_bytes(root / 'models')) / 1e9:.1f} GB read, {written / 1e9:.1f} GB written"
    ledger.add(
        part="large",
        what=what,
        value=statistics.median(ours),
        unit="s",
        limit="reading and writing the bytes",
        limit_value=statistics.median(theirs),
        target=Target(of="over", most=2),
        note=", ".join(filter(None, [moved, note])),
    )
    ledger.add(
        part="large",
        what=f"{what}: peak memory",
        value=max(peaks) / 1e6,
        unit="MB",
        limit=f"{memory >> 30} GiB",
        limit_value=memory / 1e6,
        target=Target(of="over", most=1),
    )


def main() -> int:
    """The streamed family, then the largest size of the cost against size."""
    parser = argparse.ArgumentParser(prog="make bench-large")
    parser.add_argument(
        "--layers", type=int, nargs="+", default=[4, 8], help="of Mistral-7B's 32, one run each"
    )
    parser.add_argument("--experts", type=int, default=2)
    parser.add_argument("--nm", default="64:256")
    parser.add_argument(
        "--memory", type=int, default=16, help="GiB that a process may take, page cache apart"
    )
    parser.add_argument("--rounds", type=int, default=3, help="how often each step is measured")
    parser.add_argument(
        "--size",
        type=int,
        default=size.LARGE,
        help="weights of the last point of cost by size; 0: none",
    )
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    chosen = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    ledger = Ledger(chosen.json)
    try:
        ledger.begin("large")
        nm, memory = parse_nm(chosen.nm), chosen.memory << 30
        for layers in chosen.layers:
            measure(ledger, layers, chosen.experts, nm, memory, chosen.rounds)
        if chosen.size:
            ledger.say("size")
            size.add(ledger, chosen.size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(ledger.as_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
