"""cabs-search: find the best way to merge fine-tuned models that share a base.

``merge`` makes one merged model, ``run`` searches for the best. Submodules are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cabs_search.launch import SearchResult as SearchResult
    from cabs_search.launch import run as run
    from cabs_search.materialize import merge as merge

__version__ = "0.1.0"
__all__ = ["SearchResult", "merge", "run"]
_HOMES = {"merge": "materialize", "run": "launch", "SearchResult": "launch"}
_MODULES = ("significance", "sparsify", "spec")


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"cabs_search.{_HOMES[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"cabs_search.{name}")
    raise AttributeError(f"module 'cabs_search' has no attribute {name!r}")
