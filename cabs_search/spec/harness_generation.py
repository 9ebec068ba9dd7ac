"""Settings of the texts of a generating task of lm-evaluation-harness, read from its YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

IGNORED = ("do_sample", "temperature", "top_p", "top_k", "until")
"""Keys of ``generation_kwargs`` that greedy generation does not depend on, and the stop strings."""
MOST_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most new tokens, the first counts."""
DEFAULT_MOST_TOKENS = 256
NO_FILTER = "none"
"""Name of the filter of a task that lists none."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Settings with which texts of a task are generated and scored."""

    stop: tuple[str, ...]
    max_new_tokens: int
    filters: tuple[str, ...]
    """Names of the task's filters, the default first."""


def texts_of(field: str, name: str, config: Mapping[str, Any]) -> Texts:
    """Read a task's settings.

    Args:
        field: start of errors, such as ``tasks.math.dataset.harness``.
        name: the task's.
        config: content of its YAML file.

    Raises:
        ValueError: texts are not generated greedily, once a document, or code in them is run.

    """
    settings = dict(config.get("generation_kwargs") or {})
    if settings.get("do_sample") or (
        "do_sample" not in settings and float(settings.get("temperature") or 0)
    ):
        raise ValueError(f"{field}: texts must be generated greedily, but {name} samples them")
    if other := sorted(settings.keys() - {*IGNORED, *MOST_TOKENS}):
        raise ValueError(f"{field}: greedy texts have no {other[0]}, but {name} sets it")
    if config.get("repeats", 1) != 1:
        raise ValueError(f"{field}: a document must have one text, but {name} repeats them")
    if config.get("unsafe_code"):
        raise ValueError(f"{field}: generated code is not run here, but {name} runs it")
    until = settings.get("until", config.get("fewshot_delimiter", "\n\n"))
    until = until if isinstance(until, list) else [until]
    given = (settings[key] for key in MOST_TOKENS if settings.get(key) is not None)
    filters = config.get("filter_list") or [{"name": NO_FILTER}]
    return Texts(
        stop=tuple(text for text in until if text),
        max_new_tokens=int(next(given, DEFAULT_MOST_TOKENS)),
        filters=tuple(str(one["name"]) for one in filters),
    )
