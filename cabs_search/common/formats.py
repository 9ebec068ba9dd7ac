"""Numbers, errors, tables and hashes as text."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

MOST_WRITTEN = 10**15
"""Count from which only its power of ten is written."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class's name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def finite(value: Any) -> Any:
    """Replace infinite numbers and NaN, which JSON does not have, by None in plain values."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def count_text(count: int) -> str:
    """Write a count with commas, from 10^15 its power of ten."""
    return f"{count:,}" if count < MOST_WRITTEN else f"about 10^{round(math.log10(count))}"


def duration(seconds: float) -> str:
    """Format seconds as ``42 s``, ``2 min 36 s``, from ten minutes ``12 min``, or ``3 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    if minutes < 10:
        return f"{minutes} min {rest} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def as_p(p_value: float) -> str:
    """Format a p-value with two digits, or as below 0.001: permutations resolve no less."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Pad the columns of rows to their widest cell, and return a line for each row."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def number(value: float | None, digits: int = 4) -> str:
    """Write a score; empty if there is none."""
    return "" if value is None or not math.isfinite(value) else f"{value:z.{digits}f}"


def points(value: float | None, digits: int = 1, *, typeset: bool = True) -> str:
    """Write a difference of scores in points; ``typeset``: with a minus sign and a bare zero."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{100 * value:+z.{digits}f}"
    if not typeset:
        return text
    return text.replace("-", "−") if float(text) else text.lstrip("+")


def between(interval: Sequence[float] | None, digits: int = 3) -> str:
    """Write an interval of scores; empty if there is none."""
    return "" if interval is None else f"[{interval[0]:z.{digits}f}, {interval[1]:z.{digits}f}]"


def points_between(interval: Sequence[float], *, typeset: bool = True) -> str:
    """Write an interval of a difference of scores in points."""
    low, high = (points(end, typeset=typeset) for end in interval)
    return f"[{low}, {high}]"


def show_bytes(count: float) -> str:
    """Format a number of bytes with its unit."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def digest(text: str, size: int = 8) -> str:
    """Return the BLAKE2b hash of a text, ``size`` bytes in hexadecimal."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
