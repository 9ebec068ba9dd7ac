"""Forward passes over items; heads on one trunk share its pass, and unread tokens are skipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cabs_search.kinds.base import Outcome, to_host
from cabs_search.kinds.generation import Sampling
from cabs_search.scoring.batches import batch_tokens, batches, collate
from cabs_search.scoring.generate import generate, outcome_of
from cabs_search.scoring.likelihoods import NOTHING, Beginning, log_likelihoods, read_beginning
from cabs_search.scoring.modules import replaced
from cabs_search.scoring.vllm import Engine
from cabs_search.tasks.items import Ints, Items

FIRST_TOKEN_ONLY = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types with BERT's layers, whose heads for a sequence read its first token alone."""
Scored: TypeAlias = tuple[Any, Items, Ints]
"""A model, items of a task, and the rows of them to score."""
LOGITS = ("logits", "start_logits", "end_logits")
"""Fields of outputs that losses are computed from."""
ENTROPY = -1.0
"""In the place of a temperature: the entropy of the answers is meant, not a loss."""
TEMPERATURES = tuple(2.0 ** (place / 2) for place in range(-6, 13))
"""Temperatures to choose from, 1/8 to 64."""
READS_ONE_TOKEN = ("ForSequenceClassification", "ForMultipleChoice")
HEAD_FIELDS = (
    "_name_or_path",
    "architectures",
    "id2label",
    "label2id",
    "problem_type",
    "classifier_dropout",
    "pad_token_id",
    "transformers_version",
)
"""Fields of a config that no trunk depends on; the pad token's comes with the items."""


def evaluate(model: Any, items: Items, rows: Ints, device: torch.device) -> Outcome:
    """Score ``model`` on the given rows of ``items``, in the rows' order."""
    return evaluate_together([(model, items, rows)], device)[0]


@torch.inference_mode()
def evaluate_together(
    scored: Sequence[Scored],
    device: torch.device,
    temperatures: Sequence[float] = (),
    sampling: Sampling | None = None,
    engine: Engine | None = None,
) -> list[Outcome]:
    """Score models with equal trunks on items with equal sequences, one trunk pass per batch.

    Args:
        scored: models, each with its items and the rows of them to score; see ``same_trunk`` and
            ``same_sequences``.
        device: the device of the models.
        temperatures: temperature of the losses of each of ``scored``, or ``ENTROPY``; none: 1.
        sampling: how tokens of texts are drawn; None: the likeliest is taken.
        engine: generates texts; None: transformers does.

    """
    model, items, rows = scored[0]
    if items.task.kind.generates:
        if engine is None:
            texts = generate(model, items, rows, device, sampling)
        else:
            texts = engine.generate(model, items, rows, sampling)
        return [outcome_of(own, its_rows, texts) for _, own, its_rows in scored]
    outcomes = [empty_outcome(items, rows) for _, items, rows in scored]
    for batch, outputs in outputs_by_batch(scored, device, temperatures):
        for place, (one, output) in enumerate(zip(scored, outputs, strict=True)):
            fill(outcomes[place], batch, one, output)
            if temperatures and temperatures[place] == ENTROPY:
                outcomes[place].losses[batch] = to_host(entropies_of(one, batch, output)).numpy()
    return outcomes


def outputs_by_batch(
    scored: Sequence[Scored], device: torch.device, temperatures: Sequence[float] = ()
) -> Iterator[tuple[Ints, list[Any]]]:
    """Yield the places in ``rows`` of each batch, and the output of each model on it."""
    model, items, rows = scored[0]
    with shared_pass(scored):
        is_causal = items.task.kind.is_causal
        beginning = read_beginning(model, items, rows, device) if is_causal else NOTHING
        lengths = beginning.left(items.lengths[rows])
        for batch in batches(lengths, items.counts[rows], batch_tokens(device)):
            yield batch, model_outputs(scored, batch, device, temperatures, beginning)


@torch.inference_mode()
def losses_by_temperature(
    scored: Sequence[Scored], device: torch.device
) -> list[npt.NDArray[np.float32]]:
    """Return the sum of each task's losses at every one of TEMPERATURES, [temperatures].

    Args:
        scored, device: as of ``evaluate_together``.

    """
    sums = [np.zeros(len(TEMPERATURES), np.float32) for _ in scored]
    for batch, outputs in outputs_by_batch(scored, device):
        for one, output, own in zip(scored, outputs, sums, strict=True):
            for place, temperature in enumerate(TEMPERATURES):
                scaled = at_temperature(output, temperature)
                own[place] += float(losses_of(one, batch, scaled).sum())
    return sums


@contextmanager
def shared_pass(scored: Sequence[Scored]) -> Iterator[None]:
    """Prepare models for ``model_outputs``: one trunk pass per batch, without unread tokens."""
    _, items, _ = scored[0]
    models = _models(scored)
    for model in models:
        # A decoder finds an item's last token by its padding.
        model.config.pad_token_id = items.pad["input_ids"]
    with one_pass(models), first_token_only(models[0], items.task.kind.head):
        yield


def model_outputs(
    scored: Sequence[Scored],
    batch: Ints,
    device: torch.device,
    temperatures: Sequence[float] = (),
    beginning: Beginning = NOTHING,
) -> list[Any]:
    """Return the output of each model on a batch; ``batch``: places in ``rows``.

    ``beginning`` is what all of ``rows`` begin with, if it is read.
    """
    model, items, rows = scored[0]
    if items.task.kind.is_causal:
        greedy = any(own.task.kind.reads_greedy for _, own, _ in scored)
        output = log_likelihoods(
            model, items, rows[batch], device, greedy=greedy, beginning=beginning
        )
        found = [output] * len(scored)
    else:
        found = _outputs_of_heads(scored, batch, device)
    if not temperatures:
        return found
    return [at_temperature(output, t) for output, t in zip(found, temperatures, strict=True)]


def _outputs_of_heads(scored: Sequence[Scored], batch: Ints, device: torch.device) -> list[Any]:
    _, items, rows = scored[0]
    inputs = {k: v.to(device) for k, v in collate(items, rows[batch]).items()}
    outputs = {id(model): model(**inputs) for model in _models(scored)}
    return [outputs[id(model)] for model, _, _ in scored]


def at_temperature(output: Any, temperature: float) -> Any:
    """Return a model's output with its logits, or log-likelihoods, divided by a temperature."""
    if temperature in (1, ENTROPY):
        return output
    if isinstance(output, Tensor):
        return output / temperature
    fields = [field for field in LOGITS if field in output]
    return type(output)(**{field: output[field] / temperature for field in fields})


def losses_of(scored: Scored, batch: Ints, output: Any) -> Tensor:
    """Return the losses of a model's output on a batch, with their gradient."""
    _, items, rows = scored
    return items.task.kind.losses(items.task, output, [items.rows[i] for i in rows[batch]])


def entropies_of(scored: Scored, batch: Ints, output: Any) -> Tensor:
    """Return the entropies of a model's answers on a batch, with their gradient."""
    _, items, rows = scored
    return items.task.kind.entropies(items.task, output, [items.rows[i] for i in rows[batch]])


def _models(scored: Sequence[Scored]) -> list[Any]:
    return list({id(model): model for model, _, _ in scored}.values())


def empty_outcome(items: Items, rows: Ints) -> Outcome:
    """Return an outcome of some rows, to be filled batch by batch."""
    return Outcome(
        np.empty(len(rows), np.float32),
        np.empty(len(rows), np.float32),
        np.empty_like(items.labels[rows]),
    )


def fill(outcome: Outcome, batch: Ints, scored: Scored, output: Any) -> None:
    """Write what a model's output on a batch is worth into the outcome of all rows."""
    _, items, rows = scored
    part = items.task.kind.outcome(items.task, output, [items.rows[i] for i in rows[batch]])
    outcome.scores[batch], outcome.losses[batch] = part.scores, part.losses
    outcome.predictions[batch] = part.predictions


@contextmanager
def one_pass(models: Sequence[Any]) -> Iterator[None]:
    """Let the first model's trunk compute, and the others repeat its last output."""
    first, *others = models
    repeat = _RepeatOutput()
    with ExitStack() as stack:
        stack.callback(first.base_model.register_forward_hook(repeat.keep).remove)
        for model in others:
            stack.enter_context(replaced(model, model.base_model_prefix, repeat))
        yield


class _RepeatOutput(nn.Module):
    """Returns the last output that another module's forward hook gave it, whatever the inputs."""

    output: Any = None

    def keep(self, _module: Any, _inputs: Any, output: Any) -> None:
        """Keep an output; a forward hook."""
        self.output = output

    def forward(self, *_: Any, **__: Any) -> Any:
        """Return the kept output."""
        return self.output


@contextmanager
def first_token_only(model: Any, head: str) -> Iterator[None]:
    """Let the last layer compute the first token only, if that is all that the head reads.

    This saves everything in the layer but keys and values. ``head`` is a kind's.
    """
    config = model.config
    is_known = (
        config.model_type in FIRST_TOKEN_ONLY
        and config._attn_implementation == "sdpa"
        and not config.is_decoder
    )
    if not is_known or config.chunk_size_feed_forward or head not in READS_ONE_TOKEN:
        yield
        return
    last = model.base_model.encoder.layer[-1].attention
    with ExitStack() as stack:
        # The layer adds its input to the attention's output: both must have one token.
        hook = last.output.register_forward_pre_hook(
            lambda _, inputs: tuple(tensor[:, :1] for tensor in inputs)
        )
        stack.callback(hook.remove)
        stack.enter_context(replaced(last, "self", _FirstTokenAttention(last.self)))
        yield


class _FirstTokenAttention(nn.Module):
    """BERT's self-attention of each sequence's first token, [sequences, 1, hidden]."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, None]:
        """Attend from the first token to all tokens."""
        layer: Any = self.attention

        def by_head(states: Tensor) -> Tensor:
            split: Tensor = states.unflatten(-1, (layer.num_attention_heads, -1))
            return split.transpose(1, 2)

        attended = nn.functional.scaled_dot_product_attention(
            by_head(layer.query(hidden[:, :1])),
            by_head(layer.key(hidden)),
            by_head(layer.value(hidden)),
            attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
        )
        return attended.transpose(1, 2).flatten(2), None


def same_trunk(one: Any, other: Any) -> bool:
    """Tell whether two models differ in their heads only: equal class, config and trunk values."""
    if type(one) is not type(other) or one.base_model is one:
        return False
    ours, theirs = (
        {k: v for k, v in model.config.to_dict().items() if k not in HEAD_FIELDS}
        for model in (one, other)
    )
    if ours != theirs:
        return False
    tensors, others = (model.base_model.state_dict() for model in (one, other))
    return tensors.keys() == others.keys() and all(
        tensor.data_ptr() == others[name].data_ptr() or torch.equal(tensor, others[name])
        for name, tensor in tensors.items()
    )


def same_sequences(one: tuple[Items, Ints], other: tuple[Items, Ints]) -> bool:
    """Tell whether rows of two tasks are the same to a trunk."""
    (ours, rows), (theirs, others) = one, other
    return (
        ours.pad == theirs.pad
        and (ours.task.stop, ours.task.max_new_tokens)
        == (theirs.task.stop, theirs.task.max_new_tokens)
        and len(rows) == len(others)
        and all(
            ours.rows[i].sequences == theirs.rows[j].sequences
            and ours.rows[i].targets == theirs.rows[j].targets
            for i, j in zip(rows, others, strict=True)
        )
    )
