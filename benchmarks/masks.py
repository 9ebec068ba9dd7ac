"""n:m masks and whole entries of the cache, on tensors too large for caches (point 1)."""

from __future__ import annotations

import itertools
import os
import time

import torch

from benchmarks import families, program
from benchmarks.figures import CORES, Ledger, Target, copier, interleaved, threads
from benchmarks.rivals import loop_mask, topk_mask
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.n_m import nm_mask
from cabs_search.merging.masks.settings import NM
from cabs_search.merging.method import make_method

WEIGHTS = 1 << 25
SLICE = 1 << 20
"""Weights given to the authors' loop, whose time is scaled to WEIGHTS."""
NMS: tuple[NM, ...] = ((64, 256), (3, 32))


def measure(ledger: Ledger) -> None:
    """Masks against torch.topk and the authors' loop; an entry against its mask."""
    with threads(CORES):
        delta = torch.randn(WEIGHTS // 4096, 4096, generator=torch.Generator().manual_seed(0))
        for n, m in NMS:
            _masks(ledger, delta, n, m)
        with families.scratch() as folder:
            base, experts = families.write(
                folder / "models", families.flat(WEIGHTS), 1, torch.float32
            )
            for n, m in NMS:
                _entry(ledger, Family.open(base, experts), folder, n, m)


def _masks(ledger: Ledger, delta: torch.Tensor, n: int, m: int) -> None:
    part = delta.reshape(-1)[:SLICE]
    for rival, piece in ((topk_mask, delta), (loop_mask, part)):
        assert torch.equal(nm_mask(piece, n, m).reshape(-1), rival(piece, n, m)), (
            "a rival must do the same"
        )
    times = interleaved(
        {
            "ours": lambda: nm_mask(delta, n, m),
            "topk": lambda: topk_mask(delta, n, m),
            "loop": lambda: loop_mask(part, n, m),
            "copy": copier(5 * delta.numel()),  # 4 bytes read and 1 written for each weight
        }
    )
    values = {
        "part": "masks",
        "value": times["ours"],
        "unit": "s",
        "limit": "copying as many bytes",
    }
    values |= {"limit_value": times["copy"]}
    what = f"mask {n}:{m}, {WEIGHTS / 1e6:.1f} M weights"
    ledger.add(
        what=what,
        rival="torch.topk",
        rival_value=times["topk"],
        target=Target(of="ratio", least=3),
        **values,
    )
    ledger.add(
        what=what,
        rival="the authors' loop",
        rival_value=times["loop"] * WEIGHTS / SLICE,
        target=Target(of="ratio", least=30),
        note=f"the loop ran on {SLICE / 1e6:.1f} M of the weights; its time is scaled",
        **values,
    )


def _entry(ledger: Ledger, family: Family, folder: os.PathLike[str], n: int, m: int) -> None:
    """From mapped checkpoints to a synced file: τ, mask, gather, positions, checksum, write, fsync,
    rename.
    """
    method = make_method("bs", tuple(family.experts), nm=(n, m))
    expert = next(iter(family.experts))
    deltas = [family.delta(tensor, expert) for tensor in family.alignment.shared]
    caches = (VectorCache(f"{os.fspath(folder)}/{n}-{m}-{i}") for i in itertools.count())
    found = family.fingerprints, family.base.fingerprint  # once a checkpoint, not once an entry
    assert all(found)
    paths = [program.ensure(next(caches), family, method)[expert]]
    payload = os.urandom(program.entry_bytes(paths[0]))

    def build() -> float:
        start = time.perf_counter()
        paths.append(program.ensure(next(caches), family, method)[expert])
        seconds = time.perf_counter() - start
        paths.pop(0).unlink()
        return seconds

    def write() -> None:
        with open(f"{os.fspath(folder)}/plain", "wb") as file:  # noqa: PTH123
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())

    times = interleaved(
        {
            "entry": build,
            "mask": lambda: [nm_mask(delta, n, m) for delta in deltas],
            "write": write,
        },
        rounds=4,
    )
    paths[0].unlink()
    what = f"entry {n}:{m}, {WEIGHTS / 1e6:.1f} M weights"
    ledger.add(
        part="masks",
        what=what,
        value=times["entry"],
        unit="s",
        limit="its masks alone",
        limit_value=times["mask"],
        target=Target(of="over", most=1.5),
        note=(
            f"checkpoints mapped and hashed before; {len(payload) / 1e6:.0f} MB,"
            f" {8 * len(payload) / WEIGHTS:.2f} bits a weight; to write and sync them takes"
            f" {times['write']:.3f} s"
        ),
    )
