"""A merged model for others: a folder that transformers loads, and a model that MLflow serves.

``loader_module`` of logged models names this package: MLflow calls ``_load_pyfunc``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cabs_search.serving.predictor import Served


def _load_pyfunc(path: str) -> Served:
    from pathlib import Path

    from cabs_search.serving.predictor import Served

    return Served(Path(path))
