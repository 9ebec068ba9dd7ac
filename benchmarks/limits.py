"""The machine: what every other part is held against."""

from __future__ import annotations

import itertools

from benchmarks.figures import CORES, Ledger, copier, interleaved, multiplier, threads

MOVED = 1 << 30


def measure(ledger: Ledger) -> None:
    """Copy bandwidth (read and written bytes both counted) and float32 matrix products, by
    threads.
    """
    product, operations = multiplier(2048)
    for count, act in itertools.product(sorted({1, CORES}), ("copy", "product")):
        with threads(count):
            seconds = interleaved({"act": copier(MOVED) if act == "copy" else product})["act"]
        done, unit = (MOVED / 1e9, "GB/s") if act == "copy" else (operations / 1e9, "GFLOP/s")
        what = "bytes read and written by copying" if act == "copy" else "float32 matrix product"
        ledger.add(
            part="limits",
            what=f"{what}, {count} thread{'s' * (count > 1)}",
            value=done / seconds,
            unit=unit,
        )
