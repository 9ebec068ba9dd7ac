"""Models with their heads, loaded and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cabs_search.common.formats import first_line
from cabs_search.kinds.kinds import head_of
from cabs_search.merging.family import Family
from cabs_search.spec.task import Kind


def load_model(
    family: Family,
    expert: str,
    kind: Kind,
    shared: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """The expert's model with its own head; its shared tensors are replaced by those given, not
    copied.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = family.experts[expert]
    auto: Any = getattr(transformers, f"AutoModel{head_of(kind)}")
    try:
        model, loading = auto.from_pretrained(
            checkpoint.folder, dtype=dtype, output_loading_info=True
        )
    except ValueError as error:  # an architecture that has no such head
        raise ValueError(
            f"experts.{expert}: cannot be loaded for {kind}: {first_line(error)}"
        ) from error
    if missing := sorted(
        loading["missing_keys"]
    ):  # transformers would fill them with random values
        raise ValueError(
            f"experts.{expert}: a model that scores must be whole, but has no {', '.join(missing)}"
        )
    model = model.eval().to(device)
    state = model.state_dict(keep_vars=True)
    found = {
        name: tensor for name, tensor in shared.items() if checkpoint.model_name(name) in state
    }
    if 2 * sum(t.numel() for t in found.values()) < sum(t.numel() for t in shared.values()):
        raise ValueError(
            f"experts.{expert}: {type(model).__name__} has few of the shared tensors; is it another"
            " model?"
        )
    for (
        name,
        tensor,
    ) in found.items():  # a task's model need not use all, as RoBERTa's classifier has no pooler
        state[checkpoint.model_name(name)].data = tensor
    return model


def check_heads(heads: Mapping[str, str], family: Family) -> None:
    """Raise ValueError if an expert has no head that is to score a task; ``heads``: by task."""
    for task, expert in heads.items():
        if not family.alignment.heads[expert]:
            raise ValueError(
                f"experts.{expert}: the expert that scores {task} must have a head, but has only"
                " the trunk"
            )


def pick_device(device: str) -> str:
    """``auto`` as what there is."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is asked for, but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
