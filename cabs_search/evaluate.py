"""A model on items: one outcome per item, batched by length.

``Workbench`` is what a worker holds: the trunk once, every task's head beside it, and the items. Its tensors are
rewritten in place by ``materialize``; all heads see the same trunk.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cabs_search.calibration import Calibration
from cabs_search.checkpoint import first_line
from cabs_search.kinds import Outcome, head_of, outcome
from cabs_search.materialize import Resident
from cabs_search.recipe import Method, Recipe
from cabs_search.sparsify import CALIBRATED
from cabs_search.spec import Kind, Spec, Task
from cabs_search.store import Family, Store, StoredVector
from cabs_search.tasks import Ints, Items

METHODS_OPEN = 64
"""Methods whose vectors a worker keeps open."""
BATCH_TOKENS = 1024
"""Tokens a batch holds at the most, padding counted: what activations take then stays in cache."""
GPU_BATCH_TOKENS = 16 * BATCH_TOKENS
"""On a GPU, which must be kept busy; not measured."""
PASS_TOKENS = 24
"""Tokens that take about as long as what a forward does beside its tokens."""
FIRST_TOKEN_ONLY = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose heads for a sequence read its first token alone, and whose layers are built as BERT's are."""
READS_ONE_TOKEN = ("ForSequenceClassification", "ForMultipleChoice")
HEAD_FIELDS = (
    "_name_or_path", "architectures", "id2label", "label2id", "problem_type", "classifier_dropout", "pad_token_id",
    "transformers_version",
)  # fmt: skip
"""Fields of a configuration on which no trunk depends; the pad token's comes with the items."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # as malloc.h has them
KEPT_BYTES, MAPPED_BYTES = 256 << 20, 32 << 20
"""Freed memory that a process keeps; a buffer so large goes back in any case."""


def batches(lengths: Ints, counts: Ints, tokens: int = BATCH_TOKENS) -> Iterator[Ints]:
    """Rows for each batch: similar lengths together, at most ``tokens`` a batch once padded (one row at the least).

    Of all ways to cut the rows, longest first, the one with the fewest tokens, padding and ``PASS_TOKENS`` a batch
    counted.

    Args:
        lengths: tokens of each item's longest sequence, [items].
        counts: sequences of each item, [items].
        tokens: that a batch may hold, padding counted.

    """
    order = np.argsort(lengths, kind="stable")[::-1]
    held = np.concatenate([[0], counts[order].cumsum()])
    costs, begins = np.full(len(order) + 1, np.inf), np.zeros(len(order) + 1, np.int64)
    costs[0] = 0
    for start, longest in enumerate(lengths[order]):
        most = int(np.searchsorted(held, held[start] + tokens // longest, side="right")) - 1
        ends = slice(start + 1, max(start + 1, most) + 1)
        found = costs[start] + PASS_TOKENS + longest * (held[ends] - held[start])
        better = found < costs[ends]
        costs[ends][better], begins[ends][better] = found[better], start
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(int(begins[cuts[-1]]))
    for start, end in itertools.pairwise(reversed(cuts)):
        yield order[start:end]


def batch_tokens(device: torch.device) -> int:
    """Tokens that a batch may hold."""
    return BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS


def evaluate(model: Any, items: Items, rows: Ints, device: torch.device) -> Outcome:
    """Score ``model`` on the given rows of ``items``, in the rows' order."""
    return evaluate_together([(model, items, rows)], device)[0]


@torch.inference_mode()
def evaluate_together(scored: Sequence[tuple[Any, Items, Ints]], device: torch.device) -> list[Outcome]:
    """Score models that have one trunk on items that have the same sequences: each batch goes through it once.

    Args:
        scored: models, each with its items and the rows of them to score; see ``same_trunk`` and ``same_sequences``.
        device: the models'.

    """
    outcomes = [
        Outcome(np.empty(len(rows), np.float32), np.empty(len(rows), np.float32), np.empty_like(items.labels[rows]))
        for _, items, rows in scored
    ]
    first, items, rows = scored[0]
    models = {id(model): model for model, _, _ in scored}
    for model in models.values():
        model.config.pad_token_id = items.pad["input_ids"]  # by which a decoder finds an item's last token
    with one_pass(models.values()), first_token_only(first, items.task):
        for batch in batches(items.lengths[rows], items.counts[rows], batch_tokens(device)):
            inputs = {k: v.to(device) for k, v in collate(items, rows[batch]).items()}
            outputs = {key: model(**inputs) for key, model in models.items()}
            for (model, mine, places), whole in zip(scored, outcomes, strict=True):
                found = outcome(mine.task, outputs[id(model)], [mine.rows[i] for i in places[batch]])
                whole.scores[batch], whole.losses[batch] = found.scores, found.losses
                whole.predictions[batch] = found.predictions
    return outcomes


@contextmanager
def one_pass(models: Iterable[Any]) -> Iterator[None]:
    """While it lasts the first model's trunk computes, and the others' give what it last gave."""
    first, *others = [model.base_model for model in models]
    kept: list[Any] = [None]

    def keep(_: Any, __: Any, output: Any) -> None:
        kept[0] = output

    handle = first.register_forward_hook(keep)
    try:
        for trunk in others:
            trunk.forward = lambda *_, **__: kept[0]
        yield
    finally:
        handle.remove()
        for trunk in others:
            vars(trunk).pop("forward", None)


@contextmanager
def first_token_only(model: Any, task: Task) -> Iterator[None]:
    """While it lasts the last layer computes just the token that the head reads, where that is the first one.

    Of a layer it saves all but keys and values.
    """
    config = model.config
    is_known = config.model_type in FIRST_TOKEN_ONLY and config._attn_implementation == "sdpa" and not config.is_decoder
    if not is_known or config.chunk_size_feed_forward or head_of(task.kind) not in READS_ONE_TOKEN:
        yield
        return
    last = model.base_model.encoder.layer[-1].attention
    handle = last.output.register_forward_pre_hook(lambda _, inputs: tuple(tensor[:, :1] for tensor in inputs))
    last.self.forward = partial(_first_attends, last.self)
    try:
        yield
    finally:
        del last.self.forward
        handle.remove()


def _first_attends(layer: Any, hidden: Tensor, attention_mask: Tensor | None = None, **_: Any) -> tuple[Tensor, None]:
    """BERT's self-attention of each sequence's first token, [sequences, 1, hidden]."""

    def heads(projection: Any, states: Tensor) -> Tensor:
        found: Tensor = projection(states).unflatten(-1, (layer.num_attention_heads, -1)).transpose(1, 2)
        return found

    found = torch.nn.functional.scaled_dot_product_attention(
        heads(layer.query, hidden[:, :1]),
        heads(layer.key, hidden),
        heads(layer.value, hidden),
        attn_mask=None if attention_mask is None else attention_mask[:, :, :1],
    )
    return found.transpose(1, 2).flatten(2), None


def same_trunk(one: Any, other: Any) -> bool:
    """Whether two models are alike but for their heads: one class, one configuration, the same values in the trunk."""
    if type(one) is not type(other) or one.base_model is one:
        return False
    configs = [{k: v for k, v in m.config.to_dict().items() if k not in HEAD_FIELDS} for m in (one, other)]
    ours, theirs = (m.base_model.state_dict() for m in (one, other))
    return (
        configs[0] == configs[1]
        and ours.keys() == theirs.keys()
        and all(t.data_ptr() == theirs[n].data_ptr() or torch.equal(t, theirs[n]) for n, t in ours.items())
    )


def same_sequences(one: tuple[Items, Ints], other: tuple[Items, Ints]) -> bool:
    """Whether rows of two tasks are the same to a trunk."""
    (ours, rows), (theirs, others) = one, other
    return (
        ours.pad == theirs.pad
        and len(rows) == len(others)
        and all(ours.rows[i].sequences == theirs.rows[j].sequences for i, j in zip(rows, others, strict=True))
    )


def collate(items: Items, rows: Ints) -> dict[str, Tensor]:
    """One padded batch: every field of the sequences and the attention mask, each int64, [sequences, longest].

    For multiple choice [1, sequences, longest]: all are choices of one item to the model, as items may have more or
    fewer of them.
    """
    chosen = np.concatenate([np.arange(items.firsts[i], items.firsts[i + 1]) for i in rows])
    starts, sizes = items.starts[chosen], np.diff(items.starts)[chosen]
    steps = np.arange(sizes.max())
    inside = steps < sizes[:, None]
    places = (starts[:, None] + steps)[inside]
    batch = {"attention_mask": torch.from_numpy(inside.astype(np.int64))}
    for field, pad in items.pad.items():
        filled = np.full(inside.shape, pad, np.int64)
        filled[inside] = items.tokens[field][places]
        batch[field] = torch.from_numpy(filled)
    return {f: tensor[None] for f, tensor in batch.items()} if items.task.kind == "multiple-choice" else batch


class Workbench:
    """A resident model with all its heads, ready to become any candidate."""

    def __init__(self, spec: Spec, store: Store, calibrations: Mapping[str, Path] | None = None) -> None:
        """Load the base and every head; raises ValueError where they do not fit together.

        Args:
            calibrations: files of what experts' layers saw, for mask rules that need it.

        """
        keep_memory()
        self.spec, self.store = spec, store
        self.device = torch.device(pick_device(spec.device))
        self._calibrations = dict(calibrations or {})
        self._vectors = lru_cache(METHODS_OPEN)(self._opened)
        self.family = Family.open(spec.base, spec.experts)
        dtype: torch.dtype = getattr(torch, spec.dtype)
        shared: dict[str, Tensor] = {
            name: torch.empty(shape, dtype=dtype, device=self.device)
            for name, shape in self.family.alignment.shapes.items()
        }
        self.resident = Resident(self.family.base, shared)
        self.models = {
            expert: load_model(self.family, expert, kind, shared, dtype, self.device)
            for expert, kind in {spec.expert_of(name): task.kind for name, task in spec.tasks.items()}.items()
        }
        self._trunks = {
            expert: next(name for name, first in self.models.items() if first is model or same_trunk(first, model))
            for expert, model in self.models.items()
        }

    def materialize(self, recipe: Recipe) -> None:
        """Become a candidate; vectors that the cache lacks are built."""
        self.resident.materialize(self._vectors(recipe.method), recipe)

    def _opened(self, method: Method) -> dict[str, StoredVector]:
        if isinstance(method.mask, CALIBRATED) and not self.family.calibrations:
            known = {expert: Calibration(path) for expert, path in self._calibrations.items()}
            self.family = replace(self.family, calibrations=known)
        return self.store.open(self.store.ensure(self.family, method))

    def score(self, items: Mapping[str, Items], rows: Mapping[str, Ints]) -> dict[str, Outcome]:
        """Score the present candidate on some items of each task; tasks on the same items share a pass of the trunk."""
        groups: list[list[str]] = []
        for task, mine in rows.items():
            for group in groups:
                if self._alike(task, group[0]) and same_sequences(
                    (items[task], mine), (items[group[0]], rows[group[0]])
                ):
                    group.append(task)
                    break
            else:
                groups.append([task])
        found: dict[str, Outcome] = {}
        for group in groups:
            scored = [(self.models[self.spec.expert_of(task)], items[task], rows[task]) for task in group]
            found |= zip(group, evaluate_together(scored, self.device), strict=True)
        return {task: found[task] for task in rows}

    def _alike(self, *tasks: str) -> bool:
        return len({self._trunks[self.spec.expert_of(task)] for task in tasks}) == 1


def keep_memory() -> None:
    """Let the process keep what it frees: else glibc gives a batch's buffers back, and the next batch's are faulted in.

    That takes a tenth of a forward on a CPU. Elsewhere than in glibc nothing changes.
    """
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def load_model(
    family: Family, expert: str, kind: Kind, shared: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
) -> Any:
    """The expert's model with its own head; its shared tensors are replaced by those given, not copied."""
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    checkpoint = family.experts[expert]
    auto: Any = getattr(transformers, f"AutoModel{head_of(kind)}")
    try:
        model, loading = auto.from_pretrained(checkpoint.folder, dtype=dtype, output_loading_info=True)
    except ValueError as error:  # an architecture that has no such head
        raise ValueError(f"experts.{expert}: cannot be loaded for {kind}: {first_line(error)}") from error
    if missing := sorted(loading["missing_keys"]):  # transformers would fill them with random values
        raise ValueError(f"experts.{expert}: a model that scores must be whole, but has no {', '.join(missing)}")
    model = model.eval().to(device)
    state = model.state_dict(keep_vars=True)
    found = {name: tensor for name, tensor in shared.items() if checkpoint.model_name(name) in state}
    if 2 * sum(t.numel() for t in found.values()) < sum(t.numel() for t in shared.values()):
        raise ValueError(
            f"experts.{expert}: {type(model).__name__} has few of the shared tensors; is it another model?"
        )
    for name, tensor in found.items():  # a task's model need not use all, as RoBERTa's classifier has no pooler
        state[checkpoint.model_name(name)].data = tensor
    return model


def check_heads(spec: Spec, family: Family) -> None:
    """Raises ValueError where an expert that scores a task has no head."""
    for task in spec.tasks:
        expert = spec.expert_of(task)
        if not family.alignment.heads[expert]:
            raise ValueError(
                f"experts.{expert}: the expert that scores {task} must have a head, but has only the trunk"
            )


def pick_device(device: str) -> str:
    """``auto`` as what there is."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is asked for, but torch finds no GPU")
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def blocks(items: Mapping[str, Items], size: int) -> list[dict[str, Ints]]:
    """The items of all tasks in blocks: each has its share of every task, some ``size`` of the largest.

    Returns:
        For each block, rows by task.

    """
    count = max(1, -(-max(len(i) for i in items.values()) // size))
    shares: dict[str, Sequence[Ints]] = {
        task: np.array_split(np.arange(len(i), dtype=np.int64), count) for task, i in items.items()
    }
    return [{task: share[b] for task, share in shares.items()} for b in range(count)]
