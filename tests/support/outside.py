"""A copy of the program to which a test adds a file, as the pages in docs/ tell people to."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def copy_program(folder: Path) -> Path:
    """Copy the package and what ships with it into a new folder."""
    for name in ("cabs_search", "search_spaces", "dashboards"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.pyc"))
    return folder


def blocks_of(page: str, language: str) -> list[str]:
    """Return the code blocks of a page in ``docs/`` that are in a language."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def add_value(program: Path, page: str, listing: str) -> None:
    """Add the file that a page shows first, and its lines to the listing."""
    code, (diff,) = blocks_of(page, "python")[0], blocks_of(page, "diff")
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.search(r"`(cabs_search/\S+\.py)`:\n\n```python", text)
    assert named, "the page names the file before it shows it"
    (program / named[1]).write_text(code)
    lines, place = (program / listing).read_text().splitlines(), 0
    for line in diff.splitlines():
        if line.startswith("+"):
            lines.insert(place, line[1:])
        else:
            place = lines.index(line[1:], place)
        place += 1
    (program / listing).write_text("\n".join(lines) + "\n")


def python(program: Path, *arguments: str, cache: Path | None = None) -> str:
    """Run Python on the copy and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(program), "CABS_SEARCH_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=program,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
