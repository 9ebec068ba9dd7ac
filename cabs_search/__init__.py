"""cabs-search: find the best way to merge fine-tuned models that share a base.

``merge`` makes one merged model, ``run`` searches for the best, ``compare`` searches once for each method (or order,
n:m, density). Submodules are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabs_search.comparison import Comparison as Comparison
    from cabs_search.launch import SearchResult as SearchResult
    from cabs_search.launch import compare as compare
    from cabs_search.launch import run as run
    from cabs_search.materialize import merge as merge

__version__ = "0.1.0"
__all__ = ["Comparison", "SearchResult", "compare", "merge", "run"]
_HOMES = {
    "merge": "materialize",
    "run": "launch",
    "compare": "launch",
    "SearchResult": "launch",
    "Comparison": "comparison",
}
_MODULES = ("significance", "sparsify", "spec")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cabs_search.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"cabs_search.{name}")
    raise AttributeError(f"module 'cabs_search' has no attribute {name!r}")
