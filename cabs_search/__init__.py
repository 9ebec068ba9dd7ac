"""cabs-search: find the best way to merge fine-tuned models that share a base.

``merge`` makes one merged model, ``run`` searches for the best, ``compare`` searches once for each
method (or order, n:m, density). A name's module is imported when the name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabs_search.merging.masks.n_m import conflict_aware as conflict_aware
    from cabs_search.merging.masks.n_m import nm_mask as nm_mask
    from cabs_search.merging.merge import merge as merge
    from cabs_search.results.comparison import Comparison as Comparison
    from cabs_search.stats.independent import welch as welch
    from cabs_search.stats.paired import paired as paired
    from cabs_search.workflows.compare import compare as compare
    from cabs_search.workflows.run import SearchResult as SearchResult
    from cabs_search.workflows.run import run as run

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "SearchResult",
    "compare",
    "conflict_aware",
    "merge",
    "nm_mask",
    "paired",
    "run",
    "welch",
]
_HOMES = {
    "Comparison": "results.comparison",
    "SearchResult": "workflows.run",
    "compare": "workflows.compare",
    "conflict_aware": "merging.masks.n_m",
    "merge": "merging.merge",
    "nm_mask": "merging.masks.n_m",
    "paired": "stats.paired",
    "run": "workflows.run",
    "welch": "stats.independent",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cabs_search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"cabs_search.{_HOMES[name]}"), name)
