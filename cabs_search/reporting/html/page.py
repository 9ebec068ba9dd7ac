"""report.html: a study, or a comparison, as one page that opens anywhere, with no network.

Every number is the leaderboard's or the comparison's, which the terminal and MLflow show as well.
"""

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


def write_page(found: Leaderboard | Comparison, folder: Path) -> Path:
    """Write a folder's page, which appears whole or not at all; its path.

    Raises:
        RuntimeError: it cannot be made or written, for whatever reason: what it is made from has
            cost more than it.

    """
    try:
        page = (
            comparison_page(found, folder)
            if isinstance(found, Comparison)
            else study_page(found, folder)
        )
        return write_whole(StudyFolder(folder).page, render(page))
    except Exception as error:
        raise RuntimeError(
            f"{StudyFolder(folder).page} could not be written: {first_line(error)}"
        ) from error
