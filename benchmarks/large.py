"""Build and merge of 7-billion-weight shapes as a stream, in bounded memory: ``make bench-large``
(points 8 and 9).

The limit is enforced: each step runs in a process whose private memory (RLIMIT_DATA) may be
--memory GiB above the files that it maps, which count in it as torch maps them copy-on-write. What
is reported is the peak of memory that is no file's (RssAnon), looked at 20 times a second; pages of
mapped files are page cache, which the kernel takes back.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks import families, program, size
from benchmarks.figures import CORES, Ledger, Target, copier, in_fresh_process, interleaved
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.settings import parse_nm
from cabs_search.merging.recipe import make_method, make_recipe
from cabs_search.serving.export import export
from cabs_search.spec.locations import cache_folder

DTYPE = torch.bfloat16
SPARE = 2 << 30
"""Bytes of disk left alone."""


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
    root: Path, experts: Mapping[str, Path], nm: tuple[int, int], memory: int
) -> tuple[float, float, int]:
    """Seconds of hashing the checkpoints, of building every entry, and the peak of private
    memory.
    """
    torch.set_num_threads(CORES)
    limited(memory, _bytes(root / "models"))
    with Peak() as peak:
        family = Family.open(root / "models" / "base", experts)
        start = time.perf_counter()
        assert family.fingerprints, family.base.fingerprint
        hashed = time.perf_counter()
        method = make_method("cabs", tuple(experts), nm=nm)
        with _bar(family.alignment.weights, "building entries") as bar:
            program.ensure(VectorCache(root / "cache"), family, method, bar.update)
        return hashed - start, time.perf_counter() - hashed, peak.bytes


def merge(
    root: Path, experts: Mapping[str, Path], nm: tuple[int, int], memory: int
) -> tuple[float, int]:
    """Seconds of writing the merged model from its entries, and the peak of private memory."""
    torch.set_num_threads(CORES)
    limited(memory, _bytes(root))
    with Peak() as peak:
        family = Family.open(root / "models" / "base", experts)
        assert family.fingerprints, family.base.fingerprint
        method = make_method("cabs", tuple(experts), nm=nm)
        vectors = program.vectors(VectorCache(root / "cache"), family, method)
        recipe = make_recipe(method, dict.fromkeys(experts, 1.2))
        start = time.perf_counter()
        with _bar(family.alignment.weights, "merging") as bar:
            export(family, recipe, root / "merged", heads={}, vectors=vectors, progress=bar.update)
        return time.perf_counter() - start, peak.bytes


def _bar(weights: int, what: str) -> Any:
    return tqdm(
        total=weights, unit="weight", unit_scale=True, desc=what, file=sys.stderr, mininterval=1
    )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def needed(weights: int, experts: int, nm: tuple[int, int]) -> int:
    """Bytes of disk: bfloat16 checkpoints, entries of float32 values with at most a bit a weight,
    the merged model.
    """
    models = (experts + 2) * weights * DTYPE.itemsize
    return models + experts * (int(weights * 4 * nm[0] / nm[1]) + weights // 8) + SPARE


def measure(ledger: Ledger, layers: int, experts: int, nm: tuple[int, int], memory: int) -> None:
    """Make the family, build and merge. Raises ValueError where the disk is too small."""
    shapes = families.llama(layers)
    weights = families.numel(shapes)
    (cache_folder() / "bench").mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache_folder() / "bench").free
    while experts > 1 and needed(weights, experts, nm) > free:
        experts -= 1
    wanted = needed(weights, experts, nm)
    counted = f"{experts} expert{'s' * (experts > 1)}"
    said = f"{weights / 1e9:.2f} G weights with {counted} need {wanted / 1e9:.0f} GB of disk"
    if wanted > free:
        raise ValueError(
            f"{said}, but {free / 1e9:.0f} GB are free in {cache_folder()}; --layers makes it"
            " smaller"
        )
    ledger.say(f"{said}; {free / 1e9:.0f} GB are free")
    with families.scratch() as root:
        with _bar(weights, "making checkpoints") as bar:
            _, made = families.write(root / "models", shapes, experts, DTYPE, bar.update)
        limit = {
            "limit": f"{memory >> 30} GiB",
            "limit_value": memory / 1e6,
            "target": Target(of="over", most=1),
        }
        what = f"{weights / 1e9:.2f} G weights, bfloat16, {counted}, cabs {nm[0]}:{nm[1]}"
        hashed, seconds, peak = in_fresh_process(build, root, made, nm, memory)
        copied = interleaved({"copy": copier(1 << 30)}, rounds=3)["copy"] / (1 << 30)
        entries = _bytes(root / "cache")
        moved = _bytes(root / "models") + entries
        note = (
            f"after {hashed:.0f} s of hashing the checkpoints; {entries / 1e9:.1f} GB of entries,"
            " synced"
        )
        own: dict[str, Any] = {
            "part": "large",
            "unit": "s",
            "limit": "copying as many bytes in memory",
        }
        ledger.add(
            what=f"build, {what}", value=seconds, limit_value=moved * copied, note=note, **own
        )
        ledger.add(
            part="large", what=f"build, {what}: peak memory", value=peak / 1e6, unit="MB", **limit
        )
        seconds, peak = in_fresh_process(merge, root, made, nm, memory)
        moved = entries + 2 * weights * DTYPE.itemsize
        note = "from the entries to a synced checkpoint"
        ledger.add(
            what=f"merge, {what}", value=seconds, limit_value=moved * copied, note=note, **own
        )
        ledger.add(
            part="large", what=f"merge, {what}: peak memory", value=peak / 1e6, unit="MB", **limit
        )


def main() -> int:
    """The streamed family, then the largest size of the cost against size."""
    parser = argparse.ArgumentParser(prog="make bench-large")
    parser.add_argument("--layers", type=int, default=32, help="of Llama-2-7B's 32")
    parser.add_argument(
        "--experts", type=int, default=2, help="at most; one where the disk is too small for two"
    )
    parser.add_argument("--nm", default="64:256")
    parser.add_argument(
        "--memory", type=int, default=16, help="GiB that a process may take, page cache apart"
    )
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
        measure(ledger, chosen.layers, chosen.experts, parse_nm(chosen.nm), chosen.memory << 30)
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
