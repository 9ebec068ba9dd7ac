"""Tests of report.html in Chromium, opened as a file: desktop and phone, light and dark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cabs_search.record.folder import StudyFolder
from cabs_search.reporting.charts.theme import SCHEMES
from cabs_search.reporting.html.page import write_page
from cabs_search.results.leaderboard import Leaderboard, read_leaderboard
from tests.reporting.test_html import EVIL, board, compared

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
MARKS = "svg .role-mark path, svg .role-mark line, svg .role-mark text"
TOOLTIP = "#vg-tooltip-element.visible"


@pytest.fixture(scope="module")
def finished(study: Path) -> Leaderboard:
    """Return the study's leaderboard, its page written."""
    found = read_leaderboard(study)
    write_page(found, study)
    return found


@pytest.fixture
def opened(browser: Any) -> Callable[..., Any]:
    """Return a context that opens a file without a network, and checks at the end that the page
    neither requested nor reported anything.
    """

    @contextmanager
    def open_(path: Path, size: str, scheme: str) -> Iterator[Any]:
        width, height = SIZES[size]
        phone = size == "phone"
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            device_scale_factor=2 if phone else 1,
            is_mobile=phone,
            has_touch=phone,
            offline=True,
        )
        tab, asked, said = context.new_page(), [], []
        tab.on("request", lambda request: asked.append(request.url))
        tab.on(
            "console",
            lambda message: (
                said.append(message.text) if message.type in ("error", "warning") else None
            ),
        )
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on(
            "dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        try:
            tab.goto(path.as_uri())
            tab.wait_for_selector(f"html[data-drawn={scheme}]", state="attached")
            yield tab
        finally:
            context.close()
        assert asked == [path.as_uri()]
        assert said == []

    return open_


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_report_is_drawn(
    study: Path, finished: Leaderboard, opened: Any, screenshots: Path, size: str, scheme: str
) -> None:
    with opened(StudyFolder(study).page, size, scheme) as tab:
        tab.screenshot(path=screenshots / f"report-{size}-{scheme}.png", full_page=True)
        assert tab.inner_text("h1") == finished.verdict
        drawn = tab.eval_on_selector_all(
            ".chart", f"all => all.map(at => at.querySelectorAll({MARKS!r}).length)"
        )
        assert len(drawn) >= 5
        assert min(drawn) > 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
        widest = tab.evaluate(
            "Math.max(...[...document.querySelectorAll('.chart svg')].map(at => at.clientWidth))"
        )
        assert widest <= SIZES[size][0]
        colours = SCHEMES[scheme]
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == _rgb(
            colours["surface"]
        )
        assert tab.locator(f'#leaderboard .chart [fill="{colours["accent"]}"]').count() > 0


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


@pytest.mark.parametrize("size", SIZES)
def test_a_mark_tells_its_numbers(
    study: Path, finished: Leaderboard, opened: Any, screenshots: Path, size: str
) -> None:
    with opened(StudyFolder(study).page, size, "light") as tab:
        best = max(finished.rows, key=lambda row: row.score)
        mark = tab.locator(
            "#leaderboard .chart svg .mark-symbol.role-mark path"
        ).first  # rows stand best first
        _point(tab, mark, size)
        said = tab.inner_text(TOOLTIP)
        assert best.label in said
        assert f"{best.score:.4f}" in said
        for section in ("tasks", "lambda", "spent"):
            mark = tab.locator(f"#{section} .chart svg .mark-symbol.role-mark path").first
            _point(tab, mark, size)
            assert "score" in tab.inner_text(TOOLTIP) or "metric" in tab.inner_text(TOOLTIP)
            box = tab.locator(TOOLTIP).bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= SIZES[size][0]
        tab.screenshot(path=screenshots / f"report-{size}-hover.png")


def _point(tab: Any, mark: Any, size: str) -> None:
    """Hover with a mouse, or tap with a finger, once the page stands still."""
    mark.scroll_into_view_if_needed()
    tab.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    box = mark.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    if size == "phone":
        tab.touchscreen.tap(x, y)
    else:
        tab.mouse.move(x, y)
    tab.wait_for_selector(TOOLTIP)


def test_charts_follow_the_scheme(study: Path, finished: Leaderboard, opened: Any) -> None:
    with opened(StudyFolder(study).page, "desktop", "light") as tab:
        tab.emulate_media(color_scheme="dark")
        tab.wait_for_selector("html[data-drawn=dark]", state="attached")
        dark, light = (SCHEMES[scheme]["accent"] for scheme in ("dark", "light"))
        assert tab.locator(f'.chart [fill="{dark}"]').count() > 0
        assert tab.locator(f'.chart [fill="{light}"]').count() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [board, compared])
def test_names_do_no_harm(
    make: Any, size: str, opened: Any, tmp_path: Path, screenshots: Path
) -> None:
    (tmp_path / "spec.yaml").write_text(f"name: {EVIL[0]}\n")
    path = write_page(make(EVIL), tmp_path)
    with opened(path, size, "light") as tab:
        tab.screenshot(path=screenshots / f"names-{make.__name__}-{size}.png", full_page=True)
        mark = tab.locator("section:first-of-type .chart svg .mark-symbol.role-mark path").nth(2)
        _point(tab, mark, size)
        assert tab.locator(f"{TOOLTIP} img, main img").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]
