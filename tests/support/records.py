"""Records of studies that tests have run."""

from __future__ import annotations

from pathlib import Path

from cabs_search.record.folder import StudyFolder
from cabs_search.record.outcomes import Outcomes
from cabs_search.spec.load import load


def record_of(folder: Path) -> Outcomes:
    """Open the record of a study's folder."""
    own = StudyFolder(folder)
    return Outcomes(own.outcomes, load(own.spec, locations=False).tasks)
