"""MLflow's UI in Chromium: every saved view has data, and a person finds the runs by clicking."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cabs_search.spec.load import load
from tests.conftest import pico_values, write_spec
from tests.support.records import record_of

COMMAND = [sys.executable, "-m", "cabs_search.cli"]
PATIENCE = 30_000
"""Milliseconds that a page may take to show something, on a busy machine."""
NOT_OURS = re.compile(
    r"users/current"  # asked for by MLflow 3.17 of a server without users
    # of its parallel charts, drawn before they have a size
    r"|attribute (transform|d|height|width|x|y): "
    # the last has no address; answers are looked at below
    r"|AG Grid|ResizeObserver|Failed to load resource"
)
DRAWN = """() => {
    const shown = card => {
        const plot = card.querySelector('.js-plotly-plot');
        if (plot) {
            const marks = plot.querySelectorAll('.points path, .bars path, .lines path').length;
            const size = trace => Math.min((trace.x || []).length, (trace.y || []).length);
            const layers = Object.fromEntries(plot.data.map(trace => [trace.type, size(trace)]));
            const heat = plot.querySelectorAll('.contour image, .contourlayer path').length;
            return {marks, layers, heat};
        }
        const canvas = card.querySelector('.parcoords canvas.foreground');
        if (!canvas) return {marks: 0};
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const marks = pixels.filter((value, i) => i % 4 == 3 && value > 0).length;
        return {marks, layers: {parallel: card.querySelectorAll('.parcoords .dimension').length}};
    };
    const isSeen = card => card.getBoundingClientRect().top < innerHeight - 150;
    const cards = [...document.querySelectorAll('[data-testid=experiment-view-compare-runs-card]')];
    return cards.filter(isSeen).map(card => [card.innerText.split('\\n')[0], shown(card)]);
}"""
"""JavaScript that returns, by title, the marks, data points by layer and filling of the charts."""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def serving(command: list[str], root: str, log: Path) -> Iterator[str]:
    """Run a server as a process; yield what it prints on stdout before it answers."""
    with log.open("w") as errors, log.with_suffix(".out").open("w+") as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=errors, start_new_session=True)
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                with (
                    contextlib.suppress(OSError),
                    urllib.request.urlopen(f"{root}/health", timeout=5),
                ):
                    break
                time.sleep(0.3)
            assert process.poll() is None, log.read_text()[-2000:]
            printed.seek(0)
            yield printed.read()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture(scope="session")
def views(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Yield the addresses that ``ui`` prints, while it serves them."""
    port = free_port()
    command = [*COMMAND, "ui", str(study), "--port", str(port), "--json"]
    with serving(
        command, f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("ui") / "log"
    ) as printed:
        yield json.loads(printed)["views"]


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Open a page of a desktop's size; fail if it meets an error that is not MLflow's own."""
    opened = browser.new_page(viewport={"width": 1600, "height": 1000})
    opened.set_default_timeout(PATIENCE)
    wrong: list[str] = []
    opened.on(
        "console", lambda message: wrong.append(message.text) if message.type == "error" else None
    )
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
    yield opened
    opened.close()
    assert [text for text in wrong if not NOT_OURS.search(text)] == []


def without_assistant(page: Any) -> None:
    """Close the panel that MLflow opens at a first visit, late or not at all."""
    panel = page.locator('[data-component-id="mlflow.assistant.chat_panel.close"]')
    with contextlib.suppress(Exception):
        panel.wait_for(timeout=3000)
        panel.click()


def drawn(page: Any) -> dict[str, dict[str, Any]]:
    """Return the contents of the charts on the screen, once each shows something."""
    found = {}
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline:
        found = dict(page.evaluate(DRAWN))
        if found and all(chart["marks"] for chart in found.values()):
            return found
        page.wait_for_timeout(200)
    raise AssertionError(
        f"charts without data: {[title for title, chart in found.items() if not chart['marks']]}"
    )


def charts_of(page: Any, url: str, picture: Path, count: int) -> list[dict[str, Any]]:
    """Open a view; return the contents of its charts, which MLflow makes as they scroll in."""
    page.goto(url)
    page.get_by_test_id("experiment-view-compare-runs-card").first.wait_for()
    without_assistant(page)
    found = drawn(page)
    page.wait_for_timeout(1000)  # what moves has come to rest
    page.screenshot(path=picture)
    page.mouse.move(900, 700)
    for _ in range(3 * count):
        if len(found) >= count:
            break
        page.mouse.wheel(0, 250)
        page.wait_for_timeout(300)
        found |= {title: chart for title, chart in drawn(page).items() if title not in found}
    assert len(found) == count, list(found)
    return list(found.values())


def named(views: dict[str, str], name: str) -> str:
    (url,) = [url for key, url in views.items() if key.startswith(name)]
    return url


def test_every_saved_view_has_a_test(views: dict[str, str]) -> None:
    """A view that is added fails here until it is drawn below."""
    names = [re.sub(r"(, \S+)? of .*", "", name) for name in views]
    assert sorted(names) == [
        "Best score against items spent",
        "Candidates",
        "Orders compared",
        "Parallel coordinates",
        "Per-task trade-off",
        "all runs",
        "λ landscape",
    ]


def test_the_landscape_is_drawn(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    spec = load(study / "spec.yaml", locations=False)
    of_method = candidates(study, lambda recipe: recipe.method.name == spec.space.method[0])
    pairs, experts = len(spec.experts) * (len(spec.experts) - 1) // 2, len(spec.experts)
    found = charts_of(
        page, named(views, "λ landscape"), screenshots / "landscape.png", pairs + experts
    )
    assert [chart["layers"] for chart in found] == [
        *[{"contour": of_method, "scatter": of_method}] * pairs,
        *[{"scatter": of_method}] * experts,
    ]
    assert all(chart["marks"] >= of_method for chart in found)
    assert all(chart["heat"] for chart in found[:pairs])


def test_parallel_coordinates_are_drawn(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    experts = len(load(study / "spec.yaml", locations=False).experts)
    (chart,) = charts_of(
        page, named(views, "Parallel coordinates"), screenshots / "parallel.png", 1
    )
    assert chart["layers"] == {"parallel": 2 * experts + 1}
    assert chart["marks"] > 1000


def test_the_trade_off_between_tasks_is_drawn(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    count, tasks = candidates(study), len(load(study / "spec.yaml", locations=False).tasks)
    pairs = tasks * (tasks - 1) // 2
    parallel, *found = charts_of(
        page, named(views, "Per-task"), screenshots / "tasks.png", 1 + pairs
    )
    assert parallel["layers"] == {"parallel": tasks + 1}
    assert parallel["marks"] > 1000
    assert [chart["layers"] for chart in found] == [{"scatter": count}] * pairs
    assert all(chart["marks"] == count for chart in found)


def test_the_best_score_against_items_spent_is_a_line(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    (chart,) = charts_of(page, named(views, "Best score"), screenshots / "spent.png", 1)
    assert chart["layers"] == {"scatter": candidates(study)}
    x, y = page.evaluate(
        "() => { const d = document.querySelector('.js-plotly-plot').data[0]; return [d.x, d.y]; }"
    )
    scored = record_of(study).scored("search")
    assert x == [sum(s.items for s in list(scored.values())[: n + 1]) for n in range(len(scored))]
    assert y == sorted(y)
    assert y[-1] == pytest.approx(max(s.score for s in scored.values()))


def test_orders_are_compared(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    tasks = len(load(study / "spec.yaml", locations=False).tasks)
    with_order = candidates(study, lambda recipe: "order" in recipe.as_dict())
    found = charts_of(page, named(views, "Orders"), screenshots / "orders.png", 1 + tasks)
    assert [chart["layers"] for chart in found] == [{"scatter": with_order}] * (1 + tasks)
    labels = page.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot .xtick')].map(e => e.textContent)"
    )
    assert any(label.count(">") for label in labels)


def test_the_table_shows_scores_best_first(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    page.goto(named(views, "Candidates"))
    without_assistant(page)
    cells = page.locator('.ag-row [col-id="metrics.`score`"]')
    cells.first.wait_for()
    page.screenshot(path=screenshots / "candidates.png")
    shown = [float(text) for text in cells.all_inner_texts() if text.strip()]
    scored = record_of(study).scored("search")
    assert shown == pytest.approx(
        sorted((s.score for s in scored.values()), reverse=True)[: len(shown)]
    )
    assert len(shown) > 5


def test_a_person_finds_parent_and_children(
    page: Any, views: dict[str, str], study: Path, screenshots: Path
) -> None:
    """Click from MLflow's first page to the experiment, the study's run and a candidate."""
    spec = load(study / "spec.yaml", locations=False)
    page.goto(views["all runs"].partition("#")[0])
    without_assistant(page)
    page.get_by_role("link", name="Experiments", exact=True).first.click()
    page.get_by_text("Model training", exact=True).first.click()
    page.get_by_role("link", name=spec.name, exact=True).first.click()
    cell = page.locator('.ag-row [col-id="attributes.`Run Name`"]').filter(has_text=spec.name)
    cell.locator("button, [role=button]").first.click()
    child = page.get_by_role("link", name=re.compile(r"^\d+ (cabs|task-arithmetic)")).first
    child.wait_for()
    page.screenshot(path=screenshots / "children.png")
    child.click()
    page.get_by_text("items_spent", exact=True).first.wait_for()
    page.get_by_text(f"lambda.{next(iter(spec.experts))}", exact=True).first.wait_for()
    page.get_by_text("score", exact=True).first.wait_for()
    page.screenshot(path=screenshots / "child.png")


@pytest.fixture(scope="session")
def compared(pico: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Compare with runs at a tracking server; yield the printed addresses while it runs."""
    folder, port = tmp_path_factory.mktemp("compared"), free_port()
    root = f"http://127.0.0.1:{port}"
    values = pico_values(pico, trials=3, confirm=1)
    spec = write_spec(folder / "pico.yaml", values)
    server = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        f"sqlite:///{folder / 'server.db'}",
    ]
    server += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with serving(
        [*server, "--default-artifact-root", (folder / "kept").as_uri()], root, folder / "log"
    ):
        over = [
            "--over",
            "method=cabs,ties",
            "--output",
            str(folder / "out"),
            "--tracking-uri",
            root,
        ]
        environment = os.environ | {"CABS_SEARCH_CACHE": str(folder / "cache")}
        found = subprocess.run(
            [*COMMAND, "compare", str(spec), *over],
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert found.returncode == 0, found.stderr[-3000:]
        again = subprocess.run(
            [*COMMAND, "ui", str(folder / "out"), "--json"], capture_output=True, check=True
        )
        views: dict[str, str] = json.loads(again.stdout)["views"]
        assert all(
            f"{name}  " in found.stdout and url in found.stdout for name, url in views.items()
        )
        yield views


def test_a_comparison_is_drawn_by_value(
    page: Any, compared: dict[str, str], screenshots: Path
) -> None:
    bar, line = charts_of(
        page, named(compared, "Values compared"), screenshots / "comparison.png", 2
    )
    assert bar["layers"] == {"bar": 3}
    assert line["layers"] == {"scatter": 3}
    found = charts_of(
        page, named(compared, "Candidates by value"), screenshots / "comparison-candidates.png", 4
    )
    assert [chart["layers"] for chart in found] == [{"scatter": 9}] * 4


def candidates(study: Path, wanted: Callable[[Any], bool] = lambda _: True) -> int:
    """Count the candidates that a study has scored."""
    return len(record_of(study).scored("search", wanted))
