"""Tests of report.html: its numbers are the leaderboard's, any name is safe, it fetches nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import vl_convert
import yaml

from cabs_search.common.redact import without_password
from cabs_search.merging.method import calibration_note
from cabs_search.record.versions_file import record_versions
from cabs_search.reporting.charts import comparison as comparison_charts
from cabs_search.reporting.charts import refine as refine_charts
from cabs_search.reporting.charts import search as search_charts
from cabs_search.reporting.charts import study as charts
from cabs_search.reporting.charts.rows import TIED
from cabs_search.reporting.charts.tasks import OWN_EXPERT, trade_offs
from cabs_search.reporting.charts.theme import VERSION, as_png
from cabs_search.reporting.html.comparison import comparison_page
from cabs_search.reporting.html.layout import Page, render
from cabs_search.reporting.html.page import write_page
from cabs_search.reporting.html.parts import facts_of
from cabs_search.reporting.html.study import study_page
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.as_reported import Reported
from cabs_search.results.comparison import Comparison, ValueRow
from cabs_search.results.leaderboard import Leaderboard
from cabs_search.results.matrix import Matrix
from cabs_search.results.optimism import Optimism
from cabs_search.results.panel import Contrast
from cabs_search.results.refinement import RefinedLevel, Refinement
from cabs_search.results.rows import BASELINE, FOUND, Row
from cabs_search.results.spent import Cost
from cabs_search.results.tie_set import TieSet
from cabs_search.results.tried import Tried

PLAIN = ("mood", "animal")
EVIL = (
    "</script><script>alert(1)</script>",
    "<img src=http://evil.example/x onerror=alert(1)> \"quoted' {{ 7 * 7 }}",
)
LARGEST = 3_000_000
FETCHING = (
    "src",
    "href",
    "srcset",
    "action",
    "poster",
    "data",
    "background",
    "formaction",
    "ping",
    "xlink:href",
)


def contrast(estimate: float) -> Contrast:
    ends = (estimate - 0.01, estimate + 0.01)
    tests = {"McNemar": 0.4, "Wilcoxon": 0.25}
    return Contrast(
        estimate=estimate,
        interval=ends,
        p_value=0.031,
        p_holm=0.31,
        wins=12,
        losses=9,
        effect=0.04,
        tests=tests,
    )


def row(label: str, role: Any, score: float, names: Sequence[str] = PLAIN, **changes: Any) -> Row:
    values: dict[str, Any] = {
        "label": label,
        "role": role,
        "recipe": None if role == "ideal" else {"method": "cabs"},
        "key": None if role == "ideal" else f"key of {label}",
        "score": score,
        "interval": (score - 0.011, score + 0.012),
        "simultaneous": (score - 0.021, score + 0.023),
        "tasks": {name: score + 0.01 * place for place, name in enumerate(names)},
        "task_intervals": dict.fromkeys(names, (score - 0.05, score + 0.05)),
        "losses": dict.fromkeys(names, 0.5),
        "search_score": score + 0.02 if role in ("candidate", "baseline") else None,
        "items": 1000 * len(names),
        "text": f"cabs 3:32 {'>'.join(names)} λ={score:g}"
        if role in ("candidate", "baseline")
        else "",
    }
    return Row(**values | changes)


def tried(place: int, score: float, names: Sequence[str], shared: float | None) -> Tried:
    lambdas = dict.fromkeys(names, shared if shared is not None else 0.5 + 0.1 * place)
    return Tried(
        place=place,
        key=f"key {place}",
        text=f"candidate {place}",
        method="task-arithmetic" if place % 2 else "cabs",
        amount="" if place % 2 else "3:32",
        order="" if place % 2 else ">".join(names if place % 4 else names[::-1]),
        lambdas=lambdas,
        shared=shared,
        score=score,
        rank=score,
        tasks=dict.fromkeys(names, score),
        items=48 * place,
    )


def refined(names: Sequence[str]) -> Refinement:
    """Return a refinement of which the finest level was not kept."""
    groups = {"expert": [""], "layer": ["layer0", "layer1", "rest"], "tensor": ["w"]}
    levels = tuple(
        RefinedLevel(
            level=level,
            lambdas=len(names) * len(parts),
            kept=level != "tensor",
            key=level,
            by_name={
                f"{name}.{part}".removesuffix("."): 0.1 * place
                for name in names
                for place, part in enumerate(parts, 1)
            },
            loss=(0.45, 0.4),
            score=(0.8, 0.82),
            paths=((0.45, 0.4), (0.46, 0.39)),
        )
        for level, parts in groups.items()
    )
    return Refinement(start="x", levels=levels, text=f"{names[0]} was refined.", objective="loss")


def board(names: Sequence[str] = PLAIN, **changes: Any) -> Leaderboard:
    """Return the leaderboard of a finished study."""
    rows = (
        row("base", "base", 0.6123, names),
        *(row(f"expert {name}", "expert", 0.6456, names) for name in names),
        row("ideal", "ideal", 0.9012, names),
        row(
            "best shared-λ cabs",
            "baseline",
            0.8042,
            names,
            tied=True,
            against={FOUND: contrast(-0.0123)},
        ),
        row(
            "best found",
            "candidate",
            0.8165,
            names,
            tied=True,
            against={BASELINE: contrast(0.0123)},
        ),
        row(
            "found #2",
            "candidate",
            0.7513,
            names,
            against={BASELINE: contrast(-0.0529), FOUND: contrast(-0.0652)},
        ),
    )
    values: dict[str, Any] = {
        "name": f"study of {names[0]}",
        "candidates": 6,
        "items": {"search": dict.fromkeys(names, 24), "confirm": dict.fromkeys(names, 1000)},
        "rows": rows,
        "verdict": f"The best found cannot be told from {names[1]}.",
        "baseline": "best shared-λ cabs",
        "tie_set": TieSet(
            labels=("best found", "best shared-λ cabs"),
            of=3,
            items=2000,
            gap=0.005,
            items_needed=9000,
            text="2 of 3.",
        ),
        "optimism": Optimism(
            search=0.84,
            confirm=0.82,
            estimate=0.02,
            interval=(-0.01, 0.05),
            expected=0.01,
            text="+2.0 points.",
        ),
        "as_reported": (
            Reported(
                label="cabs",
                top=3,
                mean=0.8,
                interval=(0.79, 0.81),
                against=None,
                welch_t=None,
                welch_p=None,
                student_t=None,
                student_p=None,
            ),
        ),
        "refinement": refined(names),
        "spent": Cost(
            items={"search": 288}, seconds={}, repeated=0, pruned=1, text=("288 items scored.",)
        ),
        "tried": tuple(
            tried(n, 0.7 + 0.02 * n, names, 0.2 * n if n < 5 else None) for n in range(1, 7)
        ),
    }
    return Leaderboard(**values | changes)


def value_row(*values: str, row: Row | None, failure: str | None = None) -> ValueRow:
    return ValueRow(
        label=" ".join(values), values=values, row=row, shared=None, candidates=4, failure=failure
    )


def compared(names: Sequence[str] = PLAIN, **changes: Any) -> Comparison:
    """Return a finished comparison of which one row failed."""
    made = board(names)
    named = {each.label: each for each in made.rows}
    values: dict[str, Any] = {
        "name": made.name,
        "over": ("order",),
        "items": made.items,
        "alone": made.rows[:4],
        "reference": named["best shared-λ cabs"],
        "lines": (
            value_row(">".join(names), row=named["best found"]),
            value_row(">".join(names[::-1]), row=named["found #2"]),
            value_row("broken", row=None, failure=f"no such thing as {names[0]}"),
        ),
        "notes": ("a note",),
        "matrix": Matrix(
            labels=(">".join(names), ">".join(names[::-1])),
            estimate=((0.0, 0.0652), (-0.0652, 0.0)),
            low=((0.0, 0.05), (-0.08, 0.0)),
            high=((0.0, 0.08), (-0.05, 0.0)),
            p_holm=((1.0, 0.002), (0.002, 1.0)),
        ),
        "tie_set": replace(made.tie_set, labels=(">".join(names),), of=2) if made.tie_set else None,
        "as_reported": made.as_reported,
        "spent": made.spent,
    }
    return Comparison(**values | changes)


class Reader(HTMLParser):
    """Reader of a page as a browser sees it: tags, scripts, cells, text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str, list[str]]] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self._in = ""
        self._is_cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("script", "style") else self._in
        if tag == "script":
            self.scripts.append((dict(attrs).get("type", ""), []))
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
            self._is_cell = True
        if tag == "small" and self._is_cell:
            self.cells[-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag == self._in else self._in
        self._is_cell = self._is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1][1].append(data)
        elif not self._in:
            self.text += data
            if self._is_cell:
                self.cells[-1][-1] += data.strip()

    def specs(self) -> list[dict[str, Any]]:
        """Return the charts' specs."""
        found = [
            json.loads("".join(parts)) for kind, parts in self.scripts if kind == "application/json"
        ]
        return [spec for spec in found if "$schema" in spec]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "spec.yaml").write_text("name: '</pre><script>alert(1)</script>'\n")
    return tmp_path


def page_of(found: Leaderboard | Comparison, folder: Path) -> Page:
    return (
        study_page(found, folder)
        if isinstance(found, Leaderboard)
        else comparison_page(found, folder)
    )


def read(found: Leaderboard | Comparison, folder: Path) -> Reader:
    return Reader(render(page_of(found, folder)))


@pytest.mark.parametrize("make", [board, compared])
def test_page_is_one_file_that_fetches_nothing(make: Any, folder: Path) -> None:
    path = write_page(make(), folder)
    assert sorted(each.name for each in folder.iterdir()) == ["report.html", "spec.yaml"]
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < LARGEST
    found = Reader(text)
    assert [(t, a) for t, a in found.tags if set(a) & set(FETCHING)] == []
    assert not {"link", "iframe", "img", "object", "embed", "base", "video"} & {
        tag for tag, _ in found.tags
    }
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import", style.group(1))
    policy = next(
        a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


@pytest.mark.parametrize("make", [board, compared])
def test_names_are_shown_and_never_run(make: Any, folder: Path) -> None:
    plain, evil = read(make(), folder), read(make(EVIL), folder)
    count = [
        sum(tag == wanted for tag, _ in evil.tags)
        for wanted in ("script", "img", "title", "section")
    ]
    assert count == [
        sum(tag == wanted for tag, _ in plain.tags)
        for wanted in ("script", "img", "title", "section")
    ]
    for name in EVIL:
        assert name in evil.text
        assert any(
            name in json.dumps(spec, ensure_ascii=False).replace('\\"', '"')
            for spec in evil.specs()
        )
    assert "alert(1)" in evil.text  # of spec.yaml as well, as text
    for spec in evil.specs():
        vl_convert.vegalite_to_vega(spec, vl_version=VERSION)


def test_every_number_of_the_table_is_the_leaderboards(folder: Path) -> None:
    made = board()
    lines = {cells[0]: cells[1:] for cells in read(made, folder).cells[1 : 1 + len(made.rows)]}
    assert len(lines) == len(made.rows)
    for each in made.rows:
        cells = lines[f"{each.label} {each.text}".strip() if each.text else each.label]
        low, high = each.simultaneous
        assert cells[0] == f"{each.score:.4f} [{low:.3f}, {high:.3f}]"
        assert cells[1] == "[{:.3f}, {:.3f}]".format(*each.interval)
        assert cells[2:4] == [f"{each.tasks[name]:.3f}" for name in PLAIN]
        assert cells[4] == ("" if each.search_score is None else f"{each.search_score:.4f}")
        if BASELINE in each.against:
            assert cells[6] == "0.31"
    assert lines["best found cabs 3:32 mood>animal λ=0.8165"][5] == "+1.2 [+0.2, +2.2]"
    assert lines["found #2 cabs 3:32 mood>animal λ=0.7513"][5] == "−5.3 [−6.3, −4.3]"


def test_charts_hold_the_leaderboards_numbers() -> None:
    made = board()
    drawn = {value["label"]: value for value in charts.intervals(made)["data"]["values"]}
    assert {label: value["score"] for label, value in drawn.items()} == {
        r.label: r.score for r in made.rows
    }
    assert {label for label, value in drawn.items() if value["tie"] == TIED} == {
        "best found",
        "best shared-λ cabs",
    }
    trade = trade_offs(made)
    assert trade is not None
    gains = {(v["label"], v["task"]): v["points"] for v in trade["data"]["values"]}
    assert gains["found #2", "mood"] == "−5.3"
    assert gains[OWN_EXPERT, "animal"] == "+9.7"
    spent = search_charts.progress(made.tried)
    assert spent is not None
    assert [v["best"] for v in spent["data"]["values"]] == [each.score for each in made.tried]
    assert len(search_charts.each_lambda(made.tried)) == len(PLAIN)
    assert made.refinement is not None
    cells = refine_charts.lambdas(made.refinement.levels)
    assert cells is not None
    shown = {(v["expert"], v["group"]): v["shown"] for v in cells["data"]["values"]}
    assert len(shown) == 3 * len(PLAIN), "λ of the finest level that was kept"
    assert shown["mood", "rest"] == "0.30"


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        (
            {
                "rows": (),
                "tie_set": None,
                "optimism": None,
                "baseline": None,
                "tried": (),
                "candidates": 0,
            },
            "ties",
        ),
        ({"tie_set": None}, "ties"),
        ({"optimism": None}, "optimism"),
        ({"refinement": None}, "refined"),
        ({"tried": (tried(1, 0.7, PLAIN, 0.5),), "candidates": 1}, "lambda"),
        ({"tried": tuple(tried(n, 0.7, PLAIN, 0.1 * n) for n in (1, 3, 5))}, "orders"),
        ({"rows": (row("best found", "candidate", 0.8),), "baseline": None}, ""),
        (
            {
                "rows": (row("base", "base", 0.8),),
                "baseline": None,
                "tie_set": None,
                "optimism": None,
            },
            "ties",
        ),
    ],
    ids=[
        "nothing yet",
        "no ties",
        "no optimism",
        "not refined",
        "one candidate",
        "no orders",
        "one row",
        "base alone",
    ],
)
def test_what_is_not_known_is_left_out(changes: dict[str, Any], missing: str, folder: Path) -> None:
    found = read(board(**changes), folder)
    sections = [attributes.get("id") for tag, attributes in found.tags if tag == "section"]
    assert missing not in sections
    assert sections[0] == "leaderboard"
    assert sections[-1] == "reproduce"
    for spec in found.specs():
        vl_convert.vegalite_to_vega(spec, vl_version=VERSION)


def test_a_comparison_says_which_row_failed_and_why(folder: Path) -> None:
    lines = {cells[0]: cells[1:] for cells in read(compared(), folder).cells if cells}
    assert set(lines["broken not run: no such thing as mood"]) == {""}
    assert "−6.5*" in json.dumps(
        [s["data"] for s in read(compared(), folder).specs()], ensure_ascii=False
    )
    alone = compared(
        lines=compared().lines[2:], matrix=None, tie_set=None, reference=None, alone=()
    )
    assert read(alone, folder).specs() == []


def test_a_long_search_stays_a_small_file(folder: Path) -> None:
    names = tuple(f"expert-number-{n}" for n in range(12))
    known = [tried(n, 0.5 + 0.4 * (n * 7919 % 5000) / 5000, names, None) for n in range(1, 5001)]
    long = board(
        names, tried=tuple(replace(each, text=f"{each.order} {each.lambdas}") for each in known)
    )
    assert write_page(long, folder).stat().st_size < LARGEST
    spent = search_charts.progress(long.tried)
    assert spent is not None
    best = {value["items"]: value["best"] for value in spent["data"]["values"]}
    so_far = 0.0
    for each in known:
        so_far = max(so_far, each.score)
        assert best.get(each.items, so_far) == so_far
    assert max(each.score for each in known) in best.values()
    assert {each.score for each in search_charts.drawn(known)} >= set(
        sorted(each.score for each in known)[-search_charts.MAX_DRAWN // 2 :]
    )


def test_two_axes_stand_one_down_and_one_across() -> None:
    labels = ("cabs 2:8", "dare 2:8", "cabs 8:32", "dare 8:32")
    rows = [row(label, "candidate", 0.80 + 0.01 * place) for place, label in enumerate(labels)]
    lines = tuple(
        value_row(*label.split(), row=one) for label, one in zip(labels, rows, strict=True)
    )
    drawn = comparison_charts.crossed(
        compared(over=("method", "nm"), lines=lines, reference=rows[0])
    )
    assert drawn is not None
    gains = {
        (value["label"], value["column"]): value["points"] for value in drawn["data"]["values"]
    }
    assert gains == {
        ("cabs", "2:8"): "0.0",
        ("dare", "2:8"): "+1.0",
        ("cabs", "8:32"): "+2.0",
        ("dare", "8:32"): "+3.0",
    }
    assert comparison_charts.crossed(compared()) is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_become_pictures(scheme: str) -> None:
    for specs in ([charts.intervals(board())], search_charts.each_lambda(board().tried)):
        picture = as_png(*specs, scheme=scheme, scale=1)
        assert picture.startswith(b"\x89PNG")
        assert len(picture) > 5000


def test_a_number_that_json_does_not_know_spoils_no_chart(folder: Path) -> None:
    nan, made, many = float("nan"), board(), compared()
    broken = {"score": nan, "interval": (nan, nan), "simultaneous": (nan, nan), "search_score": nan}
    broken |= {
        "tasks": dict.fromkeys(PLAIN, nan),
        "task_intervals": dict.fromkeys(PLAIN, (nan, nan)),
    }
    rows = tuple(
        replace(one, **broken) if one.label in ("found #2", "base") else one for one in made.rows
    )
    candidates = (*made.tried, replace(made.tried[0], place=7, key="x", score=nan))
    assert many.matrix is not None
    of_nan = replace(many.matrix, estimate=((0.0, nan), (nan, 0.0)), low=((nan, nan), (nan, nan)))
    for found in (
        replace(made, rows=rows, tried=candidates),
        replace(many, alone=rows[:5], matrix=of_nan),
    ):
        drawn = read(found, folder)
        for kind, parts in drawn.scripts:
            if kind == "application/json":
                json.loads(
                    "".join(parts),
                    parse_constant=lambda name: pytest.fail(f"{name} is in the page"),
                )
        for spec in drawn.specs():
            assert as_png(spec, scale=1).startswith(b"\x89PNG")


def test_no_zero_is_negative(folder: Path) -> None:
    none = row(
        "best found",
        "candidate",
        -0.00001,
        tasks=dict.fromkeys(PLAIN, -0.00001),
        interval=(-0.0001, 0.0),
    )
    against = {BASELINE: replace(contrast(-0.00001), effect=-0.0001, interval=(-0.0001, 0.0001))}
    found = read(
        board(rows=(replace(none, against=against), row("best shared-λ cabs", "baseline", 0.5))),
        folder,
    )
    shown = [cell for line in found.cells for cell in line]
    assert "0.0000" in " ".join(shown)
    assert [cell for cell in shown if re.search(r"[-−]0\.0+(?![0-9])", cell)] == []


def test_methods_with_calibration_items_are_named(folder: Path) -> None:
    note = calibration_note(["cabs", "fisher", "wanda", "fisher"])
    assert note.endswith("without their label column, in fisher, wanda.")
    assert calibration_note(["cabs", "ties"]) == ""
    found = board(calibration=note)
    assert note in read(found, folder).text
    assert note in leaderboard_text(found)


def test_a_page_shows_no_password(folder: Path) -> None:
    spec = {
        "name": "λ",
        "search": {"storage": "postgresql://me:SECRET@host/db"},
        "tasks": [{"csv": "./a@b:c.csv"}],
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec, allow_unicode=True), encoding="utf-8")
    for made in (board(), compared()):
        text = read(made, folder).text
        assert "SECRET" not in text
        assert "storage: postgresql://host/db" in text
        assert "name: λ" in text
        assert "./a@b:c.csv" in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (
            "postgresql+psycopg://me:SEC/RET?@host:5432/db?sslmode=on",
            "postgresql+psycopg://host:5432/db?sslmode=on",
        ),
        ("mysql://me:SEC@RET@host/db", "mysql://host/db"),
        ("postgresql://host/db?sslkey=/etc/k.pem", "postgresql://host/db?sslkey=/etc/k.pem"),
        (
            "postgresql://host/db?user=me&password=SECRET&x=1",
            "postgresql://host/db?user=***&password=***&x=1",
        ),
        ("https://me:SECRET@mlflow.example:5000/a@b", "https://mlflow.example:5000/a@b"),
        ("https://SECRET@mlflow.example", "https://mlflow.example"),
        ("http://127.0.0.1:5000/#/a:b@c", "http://127.0.0.1:5000/#/a:b@c"),
        ("sqlite:////home/me@work:1/study.db", "sqlite:////home/me@work:1/study.db"),
        ("owner/name@revision", "owner/name@revision"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_a_page_names_what_searched_and_not_what_wrote_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "This page was written with:" in read(board(), folder).text
    for torch in ("1.0", "1.0", "2.0", "3.0"):
        now = {"Python": "3.99", "torch": torch}
        for user in ("record.versions_file", "reporting.html.parts"):
            monkeypatch.setattr(f"cabs_search.{user}.versions", lambda now=now: now)
        if torch != "3.0":
            record_versions(folder)
    assert len(json.loads((folder / "versions.json").read_text())) == 2
    found = facts_of(folder)
    assert found.versions == {"Python": "3.99", "torch": "1.0, then 2.0"}
    text = read(board(), folder).text
    assert "This page was written with:" not in text
    assert "1.0, then 2.0" in text
    assert sorted(each.name for each in folder.iterdir()) == ["spec.yaml", "versions.json"]


def test_a_page_that_cannot_be_written_leaves_the_one_of_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_page(board(), folder).read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RuntimeError, match=r"report\.html could not be written: .*no space left"):
        write_page(compared(), folder)
    assert (folder / "report.html").read_bytes() == before
    assert sorted(each.name for each in folder.iterdir()) == ["report.html", "spec.yaml"]


def test_a_page_says_what_it_leaves_out(folder: Path) -> None:
    assert "are drawn" not in read(board(), folder).text
    assert "values at the most" not in read(compared(), folder).text
    tries = tuple(replace(tried(2, 0.7, PLAIN, 0.5), order=f"o{n}") for n in range(41))
    assert (
        "Of 41 orders the 40 with the highest means are drawn."
        in read(board(tried=tries), folder).text
    )
    assert "drawn of 40 values at the most" in read(compared(matrix=None), folder).text


def test_candidates_that_values_have_in_common_count_once(folder: Path) -> None:
    made = compared()
    assert made.spent.items["search"] == 288
    assert comparison_page(made, folder).figures[-1] == (
        "6",
        "candidates searched, each on 48 items",
    )
