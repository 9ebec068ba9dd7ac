"""Regular expressions of others, tried in a process that can be stopped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence

SECONDS = 5.0
"""Longest time that patterns may take on all names."""
TRIAL = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    list(map(re.compile(pattern).search, names))
    print(flush=True)
"""


def slow_pattern(patterns: Iterable[str], names: Sequence[str]) -> str | None:
    """Return the first pattern whose search in all names takes too long; None: all are quick.

    ``re`` may take more time than there is for one with repeats, and cannot be stopped.
    """
    repeating = [pattern for pattern in patterns if re.search(r"[*+?{]", pattern)]
    if not repeating:
        return None
    command = [sys.executable, "-I", "-S", "-c", TRIAL]
    try:
        subprocess.run(
            command,
            input=json.dumps([repeating, list(names)]).encode(),
            stdout=subprocess.PIPE,
            timeout=SECONDS,
            check=True,
        )
    except subprocess.TimeoutExpired as error:
        return repeating[(error.stdout or b"").count(b"\n")]
    return None
