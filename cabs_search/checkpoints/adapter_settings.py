"""Settings of a LoRA adapter as PEFT writes them, and the adapters that are refused."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cabs_search.checkpoints.json_files import read_json
from cabs_search.common.patterns import slow_pattern

FILE = "adapter_config.json"
MOST = 10**9
"""Largest rank and α."""
HEADS = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "MULTIPLE_CHOICE": "ForMultipleChoice",
}
"""End of a model's class, by PEFT's ``task_type``, of models with a head; the last one has none in
PEFT, and is known by its class alone.
"""
INITIALIZATIONS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Values of ``init_lora_weights`` that leave the base's weights as they are. Others (PiSSA, OLoRA,
CorDA, LoftQ, LoRA-GA) take a part out of them before tuning: the update is not against this base.
"""
TYPES = {
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out"), (bool, "true or false")),
    "modules_to_save": (list, "a list"),
    "auto_mapping": (dict, "a mapping"),
}
"""Types of fields that are read, and how errors name them."""
REFUSED = {
    "layer_replication": "repeats layers that the base has once",
    "alora_invocation_tokens": "adapts some tokens of a text only, which is no change of weights",
    "arrow_config": "chooses among adapters token by token, which is no change of weights",
    "monteclora_config": "samples its weights",
    "use_bdlora": "has block-diagonal matrices",
    "use_qalora": "adds up inputs in groups for a quantized base",
    "kasa_config": "removes parts of the base's weights",
    "target_parameters": "adapts parameters that are no module's weight",
    "trainable_token_indices": "replaces rows of the embeddings",
}
"""Fields of other kinds of LoRA, refused if they are set, and why."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """Settings that say what the tensors of a LoRA adapter mean."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    """Ranks by pattern of modules' names."""
    alphas: Mapping[str, float]
    """Values of α by pattern of modules' names."""
    is_rank_stabilized: bool
    has_magnitudes: bool
    """True for DoRA."""
    is_transposed: bool
    """True if weights are stored as [in, out]; of matrices that are not square, shapes tell."""
    whole_modules: tuple[str, ...]
    """Modules that are stored whole, ``modules_to_save``."""
    head: str | None
    """End of the class of a model with a head; None if the adapter is of another model."""
    is_language_model: bool
    base_name: str
    """Name of the base that was adapted, where the adapter was made."""

    @classmethod
    def read(cls, folder: Path) -> AdapterSettings:
        """Read ``adapter_config.json``.

        Raises:
            ValueError: it cannot be read, or the adapter is of a kind that is refused.

        """
        path = folder / FILE
        values = read_json(path)
        _check(path, values)
        task = str(values.get("task_type"))
        model_class = str((values.get("auto_mapping") or {}).get("base_model_class", ""))
        heads = (head for head in HEADS.values() if model_class.endswith(head))
        return cls(
            rank=values["r"],
            alpha=values["lora_alpha"],
            ranks=values.get("rank_pattern") or {},
            alphas=values.get("alpha_pattern") or {},
            is_rank_stabilized=bool(values.get("use_rslora")),
            has_magnitudes=bool(values.get("use_dora")),
            is_transposed=bool(values.get("fan_in_fan_out")),
            whole_modules=tuple(values.get("modules_to_save") or ()),
            head=HEADS.get(task) or next(heads, None),
            is_language_model=task == "CAUSAL_LM" or model_class.endswith(("LM", "LMHeadModel")),
            base_name=str(values.get("base_model_name_or_path") or ""),
        )

    def check_patterns(self, path: Path, modules: Sequence[str]) -> None:
        """Raise ValueError if a pattern takes too long to be searched for in modules' names."""
        keys = {_pattern(key): key for key in (*self.ranks, *self.alphas)}
        if slow := slow_pattern(keys, modules):
            raise ValueError(f"{path}: {keys[slow]!r} takes too long to be searched for in names")

    def rank_of(self, module: str) -> int:
        """Return a module's rank."""
        return int(_by_pattern(self.ranks, module, self.rank))

    def scale(self, module: str) -> float:
        """Return what a module's B·A is multiplied by: α/r, or α/√r (rsLoRA, arXiv 2312.03732)."""
        rank, alpha = self.rank_of(module), _by_pattern(self.alphas, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)

    def is_saved_whole(self, tensor: str) -> bool:
        """Tell whether a tensor belongs to a module in ``modules_to_save``."""
        return any(f".{module}." in f".{tensor}" for module in self.whole_modules)


def _by_pattern(values: Mapping[str, float], module: str, default: float) -> float:
    """Return the value of the first pattern that a module's name, or an end of it, matches."""
    fitting = (v for key, v in values.items() if re.search(_pattern(key), module))
    return next(fitting, default)


def _pattern(key: str) -> str:
    """Return the pattern of whole names that a module's name, or an end of it, must match."""
    return rf"\A(?:(.*\.)?({key}))\Z"


def _check(path: Path, values: Mapping[str, Any]) -> None:
    """Raise ValueError if an adapter is of a kind that is refused, or lacks its numbers."""
    kind = values.get("peft_type")
    if kind != "LORA":
        raise ValueError(
            f"{path}: peft_type: must be LORA (LoRA, rsLoRA, DoRA), but got {kind!r}: its update"
            " is computed in another way"
        )
    for field, why in REFUSED.items():
        if values.get(field):
            raise ValueError(f"{path}: {field}: such an adapter {why}; it cannot be an expert")
    start = values.get("init_lora_weights", True)
    if str(start).lower() not in INITIALIZATIONS:
        raise ValueError(
            f"{path}: init_lora_weights: must be one that leaves the base's weights as they are"
            f" ({', '.join(INITIALIZATIONS)}), but got {start!r}"
        )
    patterns = {f: values.get(f) or {} for f in ("rank_pattern", "alpha_pattern")}
    numbers: dict[str, Any] = {f: values.get(f) for f in ("r", "lora_alpha")}
    for field, found in patterns.items():
        if not isinstance(found, Mapping):
            raise ValueError(f"{path}: {field}: must hold numbers by pattern, but got {found!r}")
        numbers |= {f"{field}.{key}": value for key, value in found.items()}
        for key in found:
            try:
                re.compile(_pattern(key))
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(
                    f"{path}: {field}: {key!r} is no regular expression: {error}"
                ) from error
    for field, value in numbers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= MOST:
            raise ValueError(
                f"{path}: {field}: must be a number above 0, up to {MOST:g}, but got"
                f" {repr(value)[:200]}"
            )
        if not field.startswith(("lora_alpha", "alpha_pattern")) and value != int(value):
            raise ValueError(f"{path}: {field}: must be a whole number, but got {value!r}")
    for field, (wanted, name) in TYPES.items():
        value = values.get(field)
        if value is not None and not isinstance(value, wanted):
            raise ValueError(f"{path}: {field}: must be {name}, but got {value!r}")
