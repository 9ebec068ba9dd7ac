"""Parts of report.html; ``report.html.j2`` makes one file of them, with Vega's code inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cabs_search.reporting.charts.theme import FONT, SCHEMES, VERSION, Spec, config, legend

if TYPE_CHECKING:
    from jinja2 import Template


TEMPLATE = "report.html.j2"
Cell = tuple[str, str]
"""Text of a cell, and the small text under it."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Chart, or several that belong together."""

    specs: tuple[Spec, ...]
    says: str
    """Description for those who do not see it."""
    title: str = ""

    @property
    def legend(self) -> list[dict[str, str]]:
        """Entries of the legend, the same for all charts."""
        return legend(self.specs[0])


def figures(says: str, *specs: Spec | None, title: str = "") -> tuple[Figure, ...]:
    """Return a figure of those charts that could be drawn; none without any."""
    drawn = tuple(spec for spec in specs if spec is not None)
    return (Figure(specs=drawn, says=says, title=title),) if drawn else ()


@dataclass(frozen=True, kw_only=True)
class HtmlRow:
    """Row of a table, as texts."""

    label: Cell
    cells: tuple[Cell, ...]
    tied: bool = False
    """True if it cannot be told from the best."""
    apart: bool = False
    """True if it is no candidate: base, experts, ideal."""


@dataclass(frozen=True, kw_only=True)
class HtmlTable:
    """Table of the page."""

    title: str
    head: tuple[str, ...]
    lines: tuple[HtmlRow, ...]
    note: str = ""
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Part of the page, under its heading."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Names shown in a row, the first one marked."""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """Small print."""
    tables: tuple[HtmlTable, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts needed to do it again."""

    spec: str
    """Spec as resolved, in YAML."""
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    """Versions by name, the git revision among them if known."""
    remark: str
    """Remark on these versions."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content of the page."""

    name: str
    kind: str
    verdict: str
    remarks: tuple[str, ...]
    """Sentences next to the verdict."""
    figures: tuple[Cell, ...]
    """Numbers that matter most, and what they are."""
    sections: tuple[Section, ...]
    facts: Facts


def render(page: Page) -> str:
    """Write the page as HTML; all that comes from a spec or a record is escaped."""
    import vl_convert
    from markupsafe import Markup

    library: str = vl_convert.javascript_bundle(vl_version=VERSION)  # type: ignore[call-arg] # stub is wrong
    return _template().render(
        page=page,
        schemes=SCHEMES,
        font=Markup(FONT),  # noqa: S704 - a constant of ours
        configs={scheme: config(scheme) for scheme in SCHEMES},
        library=Markup(library.replace("</script", "<\\/script")),  # noqa: S704 - Vega's own code
    )


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return environment.get_template(TEMPLATE)
