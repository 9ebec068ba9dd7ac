"""The parts of report.html, and how they become one file: ``dashboards/report.html.j2`` with Vega's
code inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cabs_search.common.files import shipped_folder
from cabs_search.reporting.charts.theme import FONT, SCHEMES, VERSION, Spec, config, legend

if TYPE_CHECKING:
    from jinja2 import Template


TEMPLATE = "report.html.j2"
Cell = tuple[str, str]
"""What stands in a table, and what stands small under it."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart, or several that belong together."""

    specs: tuple[Spec, ...]
    says: str
    """What it shows, for those who do not see it."""
    title: str = ""

    @property
    def legend(self) -> list[dict[str, str]]:
        """What colours and symbols mean, the same in all of them."""
        return legend(self.specs[0])


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of a table."""

    label: Cell
    cells: tuple[Cell, ...]
    tied: bool = False
    """It cannot be told from the best."""
    apart: bool = False
    """It is no candidate: base, experts, ideal."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers row by row."""

    title: str
    head: tuple[str, ...]
    lines: tuple[TableRow, ...]
    note: str = ""
    is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page, under its heading."""

    id: str
    title: str
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    """Shown one beside the other, the first one marked."""
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    """Small print."""
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What someone needs to do it again."""

    spec: str
    """As resolved, in YAML."""
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    """By name; where there is one, the git revision."""
    remark: str
    """What is to be known of these versions."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the template shows."""

    name: str
    kind: str
    verdict: str
    remarks: tuple[str, ...]
    """What the reader should know at once as well."""
    figures: tuple[Cell, ...]
    """The few numbers that matter most, and what they are."""
    sections: tuple[Section, ...]
    facts: Facts


def render(page: Page) -> str:
    """The page as HTML; whatever comes from a spec or a record is escaped."""
    import vl_convert
    from markupsafe import Markup

    library: str = vl_convert.javascript_bundle(vl_version=VERSION)  # type: ignore[call-arg]  # its stub is wrong
    return _template().render(
        page=page,
        schemes=SCHEMES,
        font=Markup(FONT),  # noqa: S704 - a constant of ours
        configs={scheme: config(scheme) for scheme in SCHEMES},
        library=Markup(library.replace("</script", "<\\/script")),  # noqa: S704 - Vega's own code
    )


def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(shipped_folder("dashboards")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "ensure_ascii": False}
    return made.get_template(TEMPLATE)
