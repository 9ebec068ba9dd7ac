"""Base class of kinds that are scored by log-likelihoods of a causal language model's tokens.

A row becomes sequences of tokens of which the last ones are to be predicted. Tokenization is that
of lm-evaluation-harness 0.4, so that log-likelihoods are the same numbers.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from cabs_search.kinds.base import Item, Kind, Targets, TaskFields, Texts

if TYPE_CHECKING:
    from torch import Tensor

TAKES_ANY_MASK = (
    *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"),
    *("gpt2", "phi", "phi3", "smollm3", "olmo2", "granite"),
)
"""Model types whose attention follows any mask: sequences with one beginning can be packed."""
Tokens = list[int]
LONGEST_PACKED = 3
"""Most times that a packed sequence is as long as the longest one in it."""
Request = tuple[str, str]
"""A context, and a continuation to predict after it."""


class Causal(Kind):
    """A kind whose model is a causal language model, merged as a whole."""

    head: ClassVar[str] = "ForCausalLM"
    takes_other_metrics: ClassVar[bool] = False
    is_causal: ClassVar[bool] = True

    def check_head(self, where: str, model: str, config: Any) -> None:
        """See ``Kind``; GPT-2's class has another end."""
        classes = config.architectures or []
        if classes and not any(name.endswith((self.head, "LMHeadModel")) for name in classes):
            raise ValueError(
                f"{where}.kind: {self} needs a model {self.head}, but {model} is"
                f" {', '.join(classes)}"
            )


class Continuing(Causal):
    """A kind that predicts continuations of contexts."""

    default_max_length: ClassVar[int] = 2048

    @abstractmethod
    def requests(self, task: TaskFields, texts: Texts) -> list[Request]:
        """Return a row's contexts, each with a continuation."""

    def marks(self, task: TaskFields, texts: Texts, label: Any) -> Any:
        """Return what an item knows of its continuations beside their tokens."""
        return None

    def encode(
        self, where: str, task: TaskFields, tokenizer: Any, config: Any, texts: Texts, label: Any
    ) -> Item:
        """Tokenize each continuation with its context."""
        requests = self.requests(task, texts)
        return self.encode_requests(where, task, tokenizer, config, texts, label, requests)

    def encode_requests(
        self,
        where: str,
        task: TaskFields,
        tokenizer: Any,
        config: Any,
        texts: Texts,
        label: Any,
        requests: Sequence[Request],
    ) -> Item:
        """Tokenize given requests in place of ``requests``; contexts are cut from the left."""
        sequences, counts = [], []
        for context, group in itertools.groupby(requests, key=lambda request: request[0]):
            ends = [end for _, end in group]
            for tokens, count in tokens_of_pairs(where, tokenizer, context, ends):
                if not 0 < count <= task.max_length:
                    raise ValueError(
                        f"{where}.max_length: a continuation must have 1 to {task.max_length}"
                        f" tokens, but got {count} after {context[-40:]!r}"
                    )
                sequences.append(tokens[-(task.max_length + 1) :])
                counts.append(count)
        packs = can_pack(config, task.max_length)
        if packs and is_short_packed(sequences):
            scored = to_score_packed(sequences, counts)
        else:
            scored = to_score(sequences, counts, beside_packed=packs)
        marks = self.marks(task, texts, label)
        return Item(label=self.item_label(label), marks=marks, **scored)

    def item_label(self, label: Any) -> Any:
        """Return the value that a prediction is compared with, of what ``label`` returns."""
        return label

    def shape_batch(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the batch as it is."""
        return batch


def joined(before: str, text: str) -> str:
    """Return the text with a space before it, unless there is one."""
    is_apart = before.endswith(" ") or not text or text[0].isspace()
    return text if is_apart else f" {text}"


def prefix_token(where: str, tokenizer: Any) -> int:
    """Return the token that stands before a text without a context: BOS, or EOS without one.

    Raises:
        ValueError: the tokenizer has neither.

    """
    first = tokenizer.bos_token_id
    first = tokenizer.eos_token_id if first is None else first
    if first is None:
        raise ValueError(
            f"{where}.text: a text without a context needs a BOS or EOS token before it, but the"
            " tokenizer has none"
        )
    return int(first)


def tokens_of(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Tokenize texts with the tokenizer's own special tokens; no text gets a second BOS."""
    bos = tokenizer.bos_token
    has_bos = bool(bos) and texts[0].startswith(bos)
    encoded: list[Tokens] = tokenizer(list(texts), add_special_tokens=not has_bos)["input_ids"]
    return encoded


def tokens_of_pairs(
    where: str, tokenizer: Any, context: str, ends: Sequence[str]
) -> list[tuple[Tokens, int]]:
    """Tokenize a context with each of several continuations.

    Spaces at the end of the context become a part of the continuation. A continuation has the
    tokens of both texts together that come after as many as the context has by itself.

    Returns:
        The tokens of both for each continuation, and how many are the continuation's.

    """
    bare = context.rstrip()
    ends = [context[len(bare) :] + end for end in ends]
    if not bare:
        first, pairs = prefix_token(where, tokenizer), []
        for tokens in tokenizer(ends, add_special_tokens=False)["input_ids"]:
            own = tokens[1:] if tokens[:1] == [first] else tokens
            pairs.append(([first, *own], len(own)))
        return pairs
    before, *wholes = tokens_of(tokenizer, [bare, *(bare + end for end in ends)])
    return [(before + whole[len(before) :], len(whole) - len(before)) for whole in wholes]


def to_score(
    sequences: Sequence[Tokens], counts: Sequence[int], *, beside_packed: bool = False
) -> dict[str, Any]:
    """Return the fields ``sequences`` and ``targets`` of an item.

    Args:
        sequences: tokens of each part of the item, such as a choice with its context.
        counts: number of tokens at the end of each sequence that are to be predicted.
        beside_packed: whether other items are packed, whose fields these need as well.

    """
    # No token follows the last one, so the model need not read it.
    targets = [
        (number, place - 1, tokens[place])
        for number, (tokens, count) in enumerate(zip(sequences, counts, strict=True))
        for place in range(len(tokens) - count, len(tokens))
    ]
    return {
        "sequences": tuple(_whole(tokens[:-1], beside_packed) for tokens in sequences),
        "targets": _targets(targets, counts),
    }


def to_score_packed(sequences: Sequence[Tokens], counts: Sequence[int]) -> dict[str, Any]:
    """Return what ``to_score`` does, with all parts in one sequence after their common beginning.

    Of the sequence's fields, ``branch`` is 0 in the common beginning, and then the number of the
    part from 1: a token sees the beginning and its own branch up to itself.
    """
    inputs = [tokens[:-1] for tokens in sequences]
    shared = length_of_common_beginning(inputs)
    packed, positions = inputs[0][:shared], list(range(shared))
    branch, targets = [0] * shared, []
    for number, (tokens, count) in enumerate(zip(sequences, counts, strict=True), 1):
        skipped = len(packed) - shared
        packed = packed + tokens[shared:-1]
        positions += range(shared, len(tokens) - 1)
        branch += [number] * (len(tokens) - 1 - shared)
        for place in range(len(tokens) - count - 1, len(tokens) - 1):
            in_row = place if place < shared else place + skipped
            targets.append((0, in_row, tokens[place + 1]))
    sequence = {"input_ids": packed, "position_ids": positions, "branch": branch}
    return {"sequences": (sequence,), "targets": _targets(targets, counts)}


def _whole(tokens: Tokens, beside_packed: bool) -> dict[str, Tokens]:
    """Return the fields of a sequence that is all one beginning."""
    if not beside_packed:
        return {"input_ids": tokens}
    places = list(range(len(tokens)))
    return {"input_ids": tokens, "position_ids": places, "branch": [0] * len(tokens)}


def can_pack(config: Any, max_length: int) -> bool:
    """Tell whether a model can read packed sequences, and attends over all of ``max_length``."""
    window = getattr(config, "sliding_window", None)
    return config.model_type in TAKES_ANY_MASK and (window is None or max_length <= window)


def sums_by_part(output: Tensor, items: Sequence[Item]) -> list[Tensor]:
    """Return log-likelihoods of each item's parts, [parts], from those of all targets.

    Args:
        output: [targets], or [targets, 2] with a second column that is not read.
        items: the targets' items.

    """
    import torch

    output = output if output.ndim == 1 else output[:, 0]
    counts = [targets_of(item).counts for item in items]
    parts = iter(output.split([count for of_item in counts for count in of_item]))
    return [torch.stack([next(parts).sum() for _ in of_item]) for of_item in counts]


def as_targets(sums: Tensor, items: Sequence[Item]) -> Tensor:
    """Return an output, [targets], from which ``sums_by_part`` makes the given sums, [parts].

    The first token of each part has its sum, the others 0.
    """
    import torch

    counts = torch.tensor([count for item in items for count in targets_of(item).counts])
    output = torch.zeros(int(counts.sum()))
    output[counts.cumsum(0) - counts] = sums
    return output


def targets_of(item: Item) -> Targets:
    """Return the targets, which every item of these kinds has."""
    assert item.targets is not None
    return item.targets


def is_short_packed(sequences: Sequence[Tokens]) -> bool:
    """Tell whether packed sequences are not much longer than one, so that it pays to pack them.

    Attention costs the square of the length. Contexts that were cut at different places have no
    common beginning.
    """
    shared = length_of_common_beginning(sequences)
    packed = shared + sum(len(tokens) - shared for tokens in sequences)
    return packed <= LONGEST_PACKED * max(map(len, sequences))


def length_of_common_beginning(sequences: Sequence[Tokens]) -> int:
    """Return the number of tokens with which all sequences begin."""
    first, last = min(sequences), max(sequences)  # all others are between
    for place, (one, other) in enumerate(zip(first, last, strict=False)):
        if one != other:
            return place
    return min(len(first), len(last))


def _targets(found: Sequence[tuple[int, int, int]], counts: Sequence[int]) -> Targets:
    sequences, places, tokens = zip(*found, strict=True)
    return Targets(sequences=sequences, places=places, tokens=tokens, counts=tuple(counts))
