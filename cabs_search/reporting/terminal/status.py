"""News of a search for a terminal."""

from __future__ import annotations

from cabs_search.common.formats import duration, table
from cabs_search.record.progress_file import Share, Status

UNITS = {"candidate": "candidates", "item": "items", "second": "seconds", "run": "runs"}


def status_text(status: Status) -> str:
    """Write the last news of a search for a terminal."""
    state = "was killed, it seems" if status.is_silent else status.state
    rows = [["state", f"{state} (noted {duration(status.age)} ago)"], ["phase", status.phase]]
    rows += [[f"{UNITS[part.unit]} spent", _of_limit(part)] for part in status.spent]
    rows.append(["candidates", f"{status.candidates:,}"])
    if status.best is not None:
        rows.append(["best on search items", f"{status.best:.4f}"])
    rows.append(["items of this run", f"{status.items:,} ({status.items_per_second:.1f} a second)"])
    if status.state == "at work" and status.seconds_left is not None and not status.is_silent:
        rows.append(["time left of this phase", duration(status.seconds_left)])
    text = "\n".join([status.name, *(f"  {line}" for line in table(rows))])
    goes_on = "the same command goes on where it stopped"
    return text + (f"\n{goes_on}" if status.is_silent or status.state == "stopped" else "")


def _of_limit(part: Share) -> str:
    return f"{part.spent:,.0f} of {part.limit:,.0f} ({part.spent / part.limit:.0%})"
