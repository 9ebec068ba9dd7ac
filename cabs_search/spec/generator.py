"""Generator of texts, as a spec has it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from cabs_search.spec.fields import STRICT

VLLM = "vllm"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Generator:
    """Generator of texts, and its settings."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """``transformers``: its ``generate`` on the resident model; ``vllm``: vLLM, on a GPU."""
    memory: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 0.5
    """Share of a GPU's memory that vLLM has for the model, its keys and values; base and vectors
    need the rest.
    """


def _as_settings(value: Any) -> Any:
    """Read a word as the engine."""
    return {"engine": value} if isinstance(value, str) else value


GeneratorField = Annotated[Generator, BeforeValidator(_as_settings)]
