"""Documents agree with the code: packages, paths, links and the import picture."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs" / "results" / "README.md",
)
TREES = (ROOT / "README.md", ROOT / "docs" / "architecture.md")
SKIPPED = (".venv", ".git", "build", "dist", "results")
WIDTH = 100


@cache
def drawing() -> ModuleType:
    pytest.importorskip("grimp")
    place = ROOT / "docs" / "draw_architecture.py"
    found = importlib.util.spec_from_file_location("draw_architecture", place)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@cache
def files() -> tuple[str, ...]:
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
    return tuple(f"/{path.as_posix()}" for path in paths if path.parts[0] not in SKIPPED)


@pytest.mark.parametrize("page", TREES, ids=lambda page: page.name)
def test_a_tree_has_every_package_of_the_contract_in_its_order(page: Path) -> None:
    lines = re.findall(r"^(\w+)/ +\S", page.read_text(), flags=re.MULTILINE)
    assert lines == drawing().layers()[::-1]


def test_the_picture_is_that_of_the_contract_and_the_code() -> None:
    module = drawing()
    assert module.PICTURE.read_text() == module.draw(), "make docs draws it again"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_lists_layers_by_hand(page: Path) -> None:
    layers = drawing().layers()
    text = page.read_text().replace("`", "")
    for order in (layers, layers[::-1]):
        for three in zip(order, order[1:], order[2:], strict=False):
            assert not re.search(r"\b" + r",\s+".join(three) + r"\b", text), three


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    to_be_written = set(re.findall(r"`([\w/]+\.py)`:\n\n```python", text))
    for path in set(re.findall(r"[\w./-]*\w\.py\b", text)) - to_be_written:
        assert any(known.endswith(f"/{path.removeprefix('./')}") for known in files()), path


def test_paths_of_the_architecture_are_complete() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in set(re.findall(r"`([\w.]+/[\w./-]*)`", text)):
        roots = (ROOT / "cabs_search", ROOT, ROOT / "cabs_search" / "merging")
        written = path in ("outcomes/outcomes.sqlite",) or path.startswith("results/")
        assert written or any((root / path).exists() for root in roots), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_the_readme_fits_a_terminal() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [ln for ln in lines if len(ln) > WIDTH and not ln.startswith("![")] == []


def test_every_page_is_linked_from_the_readme_or_contributing() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    assert [page.name for page in PAGES if f"{page.name})" not in text][1:] == []
