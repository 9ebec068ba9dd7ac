"""A mask rule with a new setting, added from the outside as docs/add-a-mask-rule.md says."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import EXPERTS, pico_values, write_spec

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the program with one more file, and its two lines in the list of rules."""
    copy = tmp_path_factory.mktemp("program")
    for folder in ("cabs_search", "search_spaces", "dashboards"):
        ignored = shutil.ignore_patterns("*.pyc")  # but machine code, which takes long to make
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    page = (ROOT / "docs" / "add-a-mask-rule.md").read_text()
    (file,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    import_line, entry = re.findall(r"```diff\n\+(.*?\n)```", page)
    masks = copy / "cabs_search" / "merging" / "masks"
    (masks / "every_few.py").write_text(file)
    listing = (masks / "rules.py").read_text()
    listing = listing.replace(
        "from cabs_search.merging.masks.keep_all",
        import_line + "from cabs_search.merging.masks.keep_all",
    )
    (masks / "rules.py").write_text(
        listing.replace("    CabsRelative,\n)", f"    CabsRelative,\n{entry})")
    )
    return copy


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command of the copy."""
    own = {"PYTHONPATH": str(program), "CABS_SEARCH_CACHE": str(program / "cache")}
    command = [sys.executable, "-m", "cabs_search.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=program, env=os.environ | own, capture_output=True, text=True, check=False
    )


def call(program: Path, *arguments: object) -> str:
    """Run a command of the copy that must go well; what it prints."""
    done = run(program, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_its_setting_is_an_option_and_stands_in_the_recipe(program: Path, pico: Path) -> None:
    experts = [part for e in EXPERTS for part in ("--expert", f"{e}={pico / e}")]
    to = program / "merged"
    call(
        program,
        "merge",
        "--base",
        pico / "base",
        *experts,
        "--method",
        "every-few",
        "--stride",
        3,
        "--to",
        to,
    )
    recipe = json.loads((to / "recipe.json").read_text())
    assert (recipe["method"], recipe["stride"]) == ("every-few", 3)


def test_its_setting_is_searched_cached_and_tracked(program: Path, pico: Path) -> None:
    values = pico_values(pico, trials=6, sampler="random", workers=1, confirm=1)
    values["space"] = {"method": ["every-few", "ties-every-few"], "stride": [2, 3]}
    values["baselines"] = {"every-few": {"lambda": [0.5]}}
    spec, out = write_spec(program / "spec.yaml", values), program / "out"
    assert "stride" in call(program, "plan", spec)
    assert re.search(r"every-few [23] ", call(program, "run", spec, "--output", out))
    with closing(sqlite3.connect(out / "outcomes" / "outcomes.sqlite")) as db:
        recipes = [json.loads(text) for (text,) in db.execute("SELECT recipe FROM recipes")]
    searched = [recipe for recipe in recipes if "stride" in recipe]
    assert len(searched) == 6
    assert {recipe["stride"] for recipe in searched} == {2, 3}
    with closing(sqlite3.connect(out / "mlflow.db")) as db:
        params = {value for (value,) in db.execute("SELECT value FROM params WHERE key = 'stride'")}
    assert params == {"2", "3"}
    assert len(list((program / "cache").rglob("*.safetensors"))) >= 2 * len(EXPERTS)


def test_a_bad_value_meets_one_line(program: Path, pico: Path) -> None:
    values = pico_values(pico)
    values["space"] |= {"method": ["every-few"], "stride": [0]}
    spec = write_spec(program / "bad.yaml", values)
    done = run(program, "plan", spec)
    assert done.returncode == 2
    assert "stride: a stride must be a whole number above 0, but got 0" in done.stderr
