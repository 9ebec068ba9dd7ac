"""Page report.html: a study, or a comparison, as one file that opens without a network."""

from __future__ import annotations

from pathlib import Path

from cabs_search.common.files import write_whole
from cabs_search.common.formats import first_line
from cabs_search.record.folder import StudyFolder
from cabs_search.reporting.html.comparison import comparison_page
from cabs_search.reporting.html.layout import render
from cabs_search.reporting.html.study import study_page
from cabs_search.results.comparison import Comparison
from cabs_search.results.leaderboard import Leaderboard


def write_page(results: Leaderboard | Comparison, folder: Path) -> Path:
    """Write a folder's page, whole or not at all; return its path.

    Raises:
        RuntimeError: whatever went wrong; the results cost more than the page, so that callers
            need to catch one error only.

    """
    try:
        page = (
            comparison_page(results, folder)
            if isinstance(results, Comparison)
            else study_page(results, folder)
        )
        return write_whole(StudyFolder(folder).page, render(page))
    except Exception as error:
        raise RuntimeError(
            f"{StudyFolder(folder).page} could not be written: {first_line(error)}"
        ) from error
