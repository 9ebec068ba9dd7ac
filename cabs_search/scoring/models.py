"""Models with their heads, loaded and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter import Adapter, Expert
from cabs_search.common.formats import first_line
from cabs_search.kinds.base import Kind
from cabs_search.merging.family import Family
from cabs_search.tasks.load import adapted_config


def load_model(
    family: Family,
    expert: str,
    kind: Kind,
    shared: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Load an expert's model with its own head.

    Args:
        family: the base and its experts.
        expert: name of the expert.
        kind: kind of the tasks that its head scores.
        shared: tensors by shared name that replace the model's own; not copied.
        dtype: of the model.
        device: of the model.

    Raises:
        ValueError: the architecture has no such head, the checkpoint lacks tensors, or the model
            has few of the shared ones.

    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = family.experts[expert]
    auto: Any = getattr(transformers, f"AutoModel{kind.head}")
    try:
        if isinstance(checkpoint, Adapter):
            model, loading = _load_adapted(auto, checkpoint, shared, dtype)
        else:
            model, loading = auto.from_pretrained(
                checkpoint.folder, dtype=dtype, output_loading_info=True
            )
    except (ValueError, RuntimeError) as error:  # RuntimeError: config and weights disagree
        raise ValueError(
            f"experts.{expert}: cannot be loaded for {kind}: {first_line(error)}"
        ) from error
    # transformers would fill missing tensors with random values.
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"experts.{expert}: a model that scores must be whole, but has no {', '.join(missing)}"
        )
    model = model.eval().to(device)
    own = own_tensors(model, checkpoint, shared)
    if 2 * sum(t.numel() for t in own.values()) < sum(t.numel() for t in shared.values()):
        raise ValueError(
            f"experts.{expert}: {type(model).__name__} has few of the shared tensors; is it another"
            " model?"
        )
    for name, tensor in own.items():
        tensor.data = shared[name]
    return model


def _load_adapted(
    auto: Any, adapter: Adapter, shared: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """Load an adapted model, as ``from_pretrained`` does; tensors of ``shared`` come from there."""
    config = adapted_config(adapter)
    with torch.device("meta"):
        model_class = type(auto.from_config(config))
    tensors = {
        adapter.model_name(name): shared[name] if name in shared else adapter.read(name)
        for name in adapter.names
    }
    return model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )


def own_tensors(model: Any, checkpoint: Expert, shared: Iterable[str]) -> dict[str, Tensor]:
    """Return a model's tensors by shared name: those of ``shared`` that it has.

    A task's model need not use all of them: RoBERTa's classifier has no pooler.
    """
    state = model.state_dict(keep_vars=True)
    names = {name: checkpoint.model_name(name) for name in shared}
    return {name: state[in_model] for name, in_model in names.items() if in_model in state}


def check_heads(heads: Mapping[str, str], family: Family) -> None:
    """Raise ValueError if an expert has no head that is to score a task; ``heads``: by task."""
    for task, expert in heads.items():
        if not family.alignment.heads[expert]:
            raise ValueError(
                f"experts.{expert}: the expert that scores {task} must have a head, but has only"
                " the trunk"
            )


def pick_device(device: str) -> str:
    """Return the device; for ``auto`` a GPU if there is one.

    Raises:
        ValueError: ``cuda`` is asked for, but there is no GPU.

    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is asked for, but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
