"""Chromium, and a finished study for it to look at; pictures of what it saw are kept in
build/screenshots.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree, which
from typing import Any

import pytest

from tests.conftest import pico_values, write_spec

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TRIALS = 25


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A finished study's folder to look at: a copy of $CABS_SEARCH_STUDY, else one searched on pico
    models.
    """
    root = tmp_path_factory.mktemp("browser")
    if given := os.environ.get("CABS_SEARCH_STUDY"):
        return Path(copytree(given, root / "out"))
    values = pico_values(request.getfixturevalue("pico"), trials=TRIALS, confirm=5)
    values["baselines"] = {
        "task-arithmetic": {"lambda": [0.5, 1.0]},
        "cabs": {"lambda": [0.5, 1.0, 1.5]},
    }
    spec = write_spec(root / "pico.yaml", values)
    command = [
        sys.executable,
        "-m",
        "cabs_search.cli",
        "run",
        str(spec),
        "--output",
        str(root / "out"),
    ]
    environment = os.environ | {"CABS_SEARCH_CACHE": str(root / "cache")}
    found = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert found.returncode == 0, found.stderr[-3000:]
    return root / "out"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless; skipped where there is none, unless CI_BROWSER says that there must
    be.
    """
    executable = next(filter(None, map(which, CHROMIUM)), None)
    if executable is None:
        missing = f"no {', '.join(CHROMIUM[:-1])} or {CHROMIUM[-1]} on PATH"
        if os.environ.get("CI_BROWSER"):
            pytest.fail(missing)
        pytest.skip(missing)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Where pictures of pages are kept."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS
