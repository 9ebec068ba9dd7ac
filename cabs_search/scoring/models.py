"""Models with their heads, loaded and checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter import Adapter, Expert
from cabs_search.checkpoints.alignment import check_all_merged
from cabs_search.common.formats import first_line
from cabs_search.kinds.base import Kind
from cabs_search.merging.family import Family
from cabs_search.merging.recipe import BASE
from cabs_search.tasks.load import adapted_config


def load_model(
    family: Family,
    name: str,
    kind: Kind,
    shared: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Load an expert's model with its own head, or the base's.

    Args:
        family: the base and its experts.
        name: name of the expert, or ``BASE``.
        kind: kind of the tasks that its head scores.
        shared: tensors by shared name that replace the model's own; not copied.
        dtype: of the model.
        device: of the model.

    Raises:
        ValueError: the architecture has no such head, the checkpoint lacks tensors, or the model
            has few of the shared ones, or as a causal language model has others.

    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint, where = family.checkpoint(name), name if name == BASE else f"experts.{name}"
    auto: Any = getattr(transformers, f"AutoModel{kind.head}")
    try:
        if isinstance(checkpoint, Adapter):
            model, loading = _load_adapted(auto, checkpoint, shared, dtype)
        else:
            model, loading = auto.from_pretrained(
                checkpoint.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:  # a config of somebody's can raise anything
        raise ValueError(f"{where}: cannot be loaded for {kind}: {first_line(error)}") from error
    # transformers would fill missing tensors with random values.
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{where}: a model that scores must be whole, but has no {', '.join(missing)}"
        )
    model = model.eval()
    if kind.is_causal:
        _check_causal(where, model)
    own = own_tensors(model, checkpoint, shared)
    if kind.is_causal and shared:
        _check_all_merged(where, model, own)
    if 2 * sum(t.numel() for t in own.values()) < sum(t.numel() for t in shared.values()):
        raise ValueError(
            f"{where}: {type(model).__name__} has few of the shared tensors; is it another model?"
        )
    for tensor_name, tensor in own.items():
        tensor.data = shared[tensor_name]
    return model.to(device)  # now, so that a GPU never holds the trunk twice


@torch.inference_mode()
def _check_causal(where: str, model: Any) -> None:
    """Raise ValueError if a token changes what the trunk makes of the one before."""
    tokens = torch.tensor([[0, 1], [0, 2]])
    first, second = model.base_model(input_ids=tokens, use_cache=False)[0][:, 0]
    if not torch.allclose(first, second, atol=1e-3, equal_nan=True):
        raise ValueError(
            f"{where}: a language model must read each token without those after it, but"
            f" {type(model).__name__} reads all; is is_decoder true in its config.json?"
        )


def _check_all_merged(where: str, model: Any, own: Mapping[str, Tensor]) -> None:
    """Raise ValueError if a parameter of a causal language model is none of the shared tensors."""
    merged = {id(tensor) for tensor in own.values()}
    rest = [name for name, parameter in model.named_parameters() if id(parameter) not in merged]
    if rest:
        raise ValueError(
            f"{where}: every tensor of a language model must be in the base and in every expert,"
            f" but {rest[0]} is not"
        )


def _load_adapted(
    auto: Any, adapter: Adapter, shared: Mapping[str, Tensor], dtype: torch.dtype
) -> Any:
    """Load an adapted model, as ``from_pretrained`` does; tensors of ``shared`` come from there."""
    config = adapted_config(adapter)
    with torch.device("meta"):
        model_class = type(auto.from_config(config, trust_remote_code=False))
    tensors = {
        adapter.model_name(name): shared[name] if name in shared else adapter.read(name)
        for name in adapter.names
    }
    return model_class.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )


def own_tensors(model: Any, checkpoint: Expert, shared: Iterable[str]) -> dict[str, Tensor]:
    """Return a model's tensors by shared name: those of ``shared`` that it has.

    A task's model need not use all of them: RoBERTa's classifier has no pooler. Names of a bare
    trunk get the prefix that they have in a model with a head.
    """
    state = model.state_dict(keep_vars=True)
    found = {}
    for name in shared:
        in_file = checkpoint.model_name(name)
        for in_model in (in_file, f"{model.base_model_prefix}.{in_file}"):
            if in_model in state:
                found[name] = state[in_model]
                break
    return found


def check_heads(heads: Mapping[str, str], family: Family) -> None:
    """Check that the tensors of all models are merged, or are the head of a task.

    Args:
        heads: by task the model whose head scores it, an expert or the base.
        family: the base and its experts.

    Raises:
        ValueError: an expert that is to score a task has no head; or a tensor of a causal language
            model is neither merged nor a head that is used.

    """
    for task, model in heads.items():
        if model != BASE and not family.alignment.heads[model]:
            raise ValueError(
                f"experts.{model}: the expert that scores {task} must have a head, but has only"
                " the trunk"
            )
    if BASE in heads.values():
        check_all_merged(family.base, family.experts, family.alignment, heads.values())


def pick_device(device: str) -> str:
    """Return the device; for ``auto`` a GPU if there is one.

    Raises:
        ValueError: ``cuda`` is asked for, but there is no GPU.

    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is asked for, but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
