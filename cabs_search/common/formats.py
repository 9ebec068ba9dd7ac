"""Numbers, errors and tables as people read them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any


def first_line(error: BaseException) -> str:
    """What an error says, without its further lines; its kind where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def finite(value: Any) -> Any:
    """Plain values with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def as_p(p_value: float) -> str:
    """A p-value with two digits; of permutations none is under their number's inverse."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Columns padded to their widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def number(value: float | None) -> str:
    """A score as the leaderboard shows it."""
    return "" if value is None or not math.isfinite(value) else f"{value:z.4f}"


def points(value: float | None) -> str:
    """A difference of scores in points."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "−").replace("+0.0", "0.0")


def between(interval: Sequence[float] | None) -> str:
    """An interval as the leaderboard shows it."""
    return "" if interval is None else f"[{interval[0]:z.3f}, {interval[1]:z.3f}]"


def show_bytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def digest(text: str, size: int = 8) -> str:
    """Hash a text: BLAKE2b of ``size`` bytes, in hexadecimal."""
    return hashlib.blake2b(text.encode(), digest_size=size).hexdigest()
