"""Gradients in λ: one backward pass has those of every expert on every tensor.

A merged model is base + Σ λᵢ·τ̃ᵢ. So the gradient of a loss in λᵢ on one tensor is the inner product
of the loss's gradient in that tensor and τ̃ᵢ. It is taken as soon as the backward pass has the
tensor's gradient, which is freed then: memory grows by activations and one tensor, not by a second
model. Where a batch's activations are too large for that, each layer's are computed once more in
the backward pass (gradient checkpointing, Chen et al., arXiv 1604.06174): a third more time.

Precision: gradients in the weights are of the model's dtype, the inner products are summed in
float64. On the quickstart's experts all gradients together, as one long vector, were about 1e-6
(float32), 1e-3 (float16) and 1e-2 (bfloat16) away from float64's, relative to its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cabs_search.kinds.base import Outcome, to_host
from cabs_search.merging.resident import Resident
from cabs_search.scoring.batches import batch_tokens, batches
from cabs_search.scoring.forward import (
    ENTROPY,
    Scored,
    empty_outcome,
    entropies_of,
    fill,
    losses_of,
    model_outputs,
    shared_pass,
)

PASS_TOKENS = 80
"""Cost of a forward and backward pass beside its tokens, as ``batches.PASS_TOKENS``: a backward
pass writes and reads a gradient of the model's size.
"""

BATCH_SHARE = 0.8
"""Most tokens of a batch, as a part of a scored one's: all of its activations are kept."""
MOST_ACTIVATIONS = 4 << 30
"""Bytes of a batch's activations above which layers are computed twice, on a CPU."""
ACTIVATIONS = 28
"""Numbers that a layer keeps for the backward pass, for each token and unit of width: as measured
on a Llama of 16 layers, whose peak fell from 3.8 to 1.4 GB by computing them twice.
"""


class LambdaGradients:
    """Gradients in λ of the losses of some tasks, summed up tensor by tensor."""

    def __init__(
        self, resident: Resident, experts: Iterable[str], tensors: Iterable[str], tasks: int
    ) -> None:
        """Begin with zeros.

        Args:
            resident: the merged model.
            experts: names of the rows.
            tensors: names of the columns.
            tasks: number of tasks.

        """
        self.task = 0
        """Place of the task whose losses are differentiated now."""
        self.summed = resident.summed
        """Experts of each tensor's sum."""
        self._resident = resident
        self._rows = {expert: row for row, expert in enumerate(experts)}
        self._columns = {tensor: column for column, tensor in enumerate(tensors)}
        self._sums = np.zeros((tasks, len(self._rows), len(self._columns)))
        self._embeddings: dict[tuple[int, str], Tensor] = {}

    def add(self, tensor: str, gradient: Tensor) -> None:
        """Add the gradient of a batch's losses in one tensor of the model.

        A sparse one, of word embeddings, is mostly zero: those of a task's batches are added up
        first.
        """
        if not gradient.is_sparse:
            self._add_products(self.task, tensor, gradient)
            return
        wide, key = torch.promote_types(gradient.dtype, torch.float32), (self.task, tensor)
        if key not in self._embeddings:
            zeros = torch.zeros(gradient.shape, dtype=wide, device=gradient.device)
            self._embeddings[key] = zeros
        self._embeddings[key].add_(gradient.to(wide))

    def _add_products(self, task: int, tensor: str, gradient: Tensor) -> None:
        rows = [self._rows[expert] for expert in self.summed[tensor]]
        products = self._resident.inner_products(tensor, gradient)
        self._sums[task, rows, self._columns[tensor]] += products

    def finish(self) -> npt.NDArray[np.float32]:
        """Return the gradients of all that was added, [tasks, experts, tensors]."""
        while self._embeddings:
            (task, tensor), gradient = self._embeddings.popitem()
            self._add_products(task, tensor, gradient)
        return self._sums.astype(np.float32)


def evaluate_with_gradients(
    scored: Sequence[Scored],
    tensors: Sequence[Mapping[str, Tensor]],
    gradients: LambdaGradients,
    device: torch.device,
    temperatures: Sequence[float],
) -> list[Outcome]:
    """Score as ``forward.evaluate_together`` does, and add the losses' gradients in λ.

    Args:
        scored: models, each with its items and the rows of them to score.
        tensors: each model's own tensors by shared name.
        gradients: to add to; its tasks are those of ``scored``.
        device: the device of the models.
        temperatures: temperature of the losses of each of ``scored``, or ``ENTROPY``.

    """
    outcomes = [empty_outcome(items, rows) for _, items, rows in scored]
    _, items, rows = scored[0]
    tokens = int(BATCH_SHARE * batch_tokens(device))
    lengths, counts = items.lengths[rows], items.counts[rows]
    cut = list(batches(lengths, counts, tokens, PASS_TOKENS))
    largest = max((int(lengths[batch].max() * counts[batch].sum()) for batch in cut), default=0)
    own = [{t: p for t, p in of_model.items() if t in gradients.summed} for of_model in tensors]
    with (
        _differentiable([model for model, _, _ in scored], own, tokens, gradients.add),
        _recomputed(scored[0][0], largest),
        shared_pass(scored),
    ):
        for batch in cut:
            outputs = model_outputs(scored, batch, device, temperatures)
            for place, (one, output) in enumerate(zip(scored, outputs, strict=True)):
                fill(outcomes[place], batch, one, output)
                gradients.task = place
                if temperatures[place] == ENTROPY:
                    losses = entropies_of(one, batch, output)
                    outcomes[place].losses[batch] = to_host(losses).numpy()
                else:
                    losses = losses_of(one, batch, output)
                if losses.requires_grad:  # else no vector touches the model
                    losses.sum().backward(retain_graph=place + 1 < len(scored))
    return outcomes


@contextmanager
def _differentiable(
    models: Sequence[nn.Module],
    tensors: Sequence[Mapping[str, Tensor]],
    tokens: int,
    take: Callable[[str, Tensor], None],
) -> Iterator[None]:
    """Let backward passes hand the gradients of some tensors to ``take``, and free them.

    Nothing else of the models gets a gradient. Embeddings of more rows than a batch has tokens get
    sparse ones; rows of padding get theirs, as of any other token.
    """
    # A tensor that is tied to another has two names; the last is the one that is materialized.
    names = {id(p): (p, name) for of_model in tensors for name, p in of_model.items()}
    every = [*(p for model in models for p in model.parameters()), *(p for p, _ in names.values())]
    flags = {id(p): (p, p.requires_grad) for p in every}
    embeddings = {
        module: (module.sparse, module.padding_idx)
        for model in models
        for module in model.modules()
        if isinstance(module, nn.Embedding)
    }
    hooks = []

    def hand_over(name: str, parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        take(name, gradient)

    try:
        for parameter, _ in flags.values():
            parameter.requires_grad_(False)
        for tensor, name in names.values():
            tensor.requires_grad_()
            hooks.append(tensor.register_post_accumulate_grad_hook(partial(hand_over, name)))
        for module in embeddings:
            module.sparse, module.padding_idx = module.num_embeddings > tokens, None
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, flag in flags.values():
            parameter.requires_grad_(flag)
            parameter.grad = None  # if the pass was interrupted
        for module, (sparse, padding) in embeddings.items():
            module.sparse, module.padding_idx = sparse, padding


@contextmanager
def _recomputed(model: Any, tokens: int) -> Iterator[None]:
    """Let the backward pass compute layers again, if what they would keep is too large.

    Args:
        model: the model; of a type whose layers transformers cannot checkpoint all is kept.
        tokens: those of the largest batch.

    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    config = model.config
    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    width = getattr(config.get_text_config(), "hidden_size", 0)
    kept = ACTIVATIONS * tokens * width * len(layers) * model.dtype.itemsize
    if kept <= _most_activations(model.device):
        yield
        return
    before = [layer.__dict__.get("forward") for layer in layers]
    uses_cache = getattr(config, "use_cache", False)
    try:
        if uses_cache:
            config.use_cache = False  # a layer that is computed again would add to it again
        for layer in layers:
            # transformers' own switch turns a layer's dropout on
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward
        if uses_cache:
            config.use_cache = uses_cache


def _most_activations(device: torch.device) -> int:
    """Return the bytes of activations that may be kept: on a GPU half of what is free."""
    if device.type != "cuda":
        return MOST_ACTIVATIONS
    return int(torch.cuda.mem_get_info(device)[0]) // 2
