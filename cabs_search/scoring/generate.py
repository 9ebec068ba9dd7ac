"""Texts that a causal language model writes after prompts, greedily or by sampling.

A text ends where that of lm-evaluation-harness's HFLM with one prompt a batch ends. The prompts of
a batch are padded on the left and the padding is masked, so that a text does not depend on the
others of its batch, but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cabs_search.common.formats import digest
from cabs_search.kinds.base import Outcome
from cabs_search.kinds.generation import Sampling, Written
from cabs_search.scoring.batches import batches_of
from cabs_search.tasks.harness import score_texts
from cabs_search.tasks.items import Ints, Items


def generate(
    model: Any, items: Items, rows: Ints, device: torch.device, sampling: Sampling | None = None
) -> list[str]:
    """Return the texts that a model writes after some items' prompts, in the order of ``rows``.

    Args:
        model: a causal language model.
        items: items of a kind that generates.
        rows: the items to write after.
        device: the model's.
        sampling: how tokens are drawn; None: the likeliest is taken.

    """
    texts = [""] * len(rows)
    for batch in batches_of(items, rows, device):
        written = _generate(model, items, rows[batch], device, sampling)
        for place, text in zip(batch, written, strict=True):
            texts[place] = text
    return texts


def outcome_of(items: Items, rows: Ints, texts: Sequence[str]) -> Outcome:
    """Score texts, by lm-evaluation-harness if the task is one of it."""
    task, chosen = items.task, [items.rows[i] for i in rows]
    scores = None
    if task.dataset.harness:
        scores = score_texts(task, [item.marks for item in chosen], texts)
    return task.kind.outcome(task, Written(texts, scores), chosen)


def _generate(
    model: Any, items: Items, rows: Ints, device: torch.device, sampling: Sampling | None
) -> list[str]:
    from transformers import LogitsProcessorList, StoppingCriteriaList

    prompts = [items.rows[i].sequences[0]["input_ids"] for i in rows]
    longest, pad = max(map(len, prompts)), items.pad["input_ids"]
    tokens = torch.full((len(prompts), longest), pad)
    mask = torch.zeros_like(tokens)
    for place, prompt in enumerate(prompts):
        tokens[place, longest - len(prompt) :] = torch.tensor(prompt)
        mask[place, longest - len(prompt) :] = 1
    strings = end_strings(items)
    ends = _Ends(items.tokenizer, strings, model.generation_config.eos_token_id, tokens.shape)
    noise = [_Noise([items.keys[i] for i in rows], sampling)] if sampling else []
    found = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        do_sample=False,
        max_new_tokens=items.task.max_new_tokens,
        pad_token_id=pad,
        use_cache=True,
        stopping_criteria=StoppingCriteriaList([ends]),
        logits_processor=LogitsProcessorList(noise),
    )
    new = found[:, longest:].tolist()
    kept = [own[:end] for own, end in zip(new, ends.found, strict=True)]
    texts = items.tokenizer.batch_decode(kept, skip_special_tokens=True)
    return [cut(text, strings) for text in texts]


def cut(text: str, strings: Sequence[str]) -> str:
    """Return a text up to the first of some strings."""
    for string in strings:
        text = text.split(string)[0]
    return text


def end_strings(items: Items) -> list[str]:
    """Return the strings that end a text: the task's, and the tokenizer's end mark, if any."""
    end = items.tokenizer.eos_token_id
    marks = [] if end is None else [items.tokenizer.decode([end])]
    return [*items.task.stop, *filter(None, marks)]


class _Ends:
    """Criterion of ``generate`` that ends each text of a batch by itself, and notes where."""

    def __init__(
        self, tokenizer: Any, strings: Sequence[str], eos: int | list[int] | None, shape: torch.Size
    ) -> None:
        self.found: list[int | None] = [None] * shape[0]
        """Number of tokens of each text that has ended, else None."""
        self._tokenizer, self._strings, self._start = tokenizer, strings, shape[1]
        self._eos = {eos} if isinstance(eos, int) else set(eos or ())
        # A token may be one byte, or the rest of the one before.
        self._window = 1 + max((len(string.encode()) for string in strings), default=0)

    def __call__(self, tokens: Tensor, _scores: Any, **_: Any) -> Tensor:
        count = tokens.shape[1] - self._start
        last = tokens[:, self._start :][:, -self._window :].tolist()
        for place, text in enumerate(self._tokenizer.batch_decode(last)):
            is_end = last[place][-1] in self._eos or any(s in text for s in self._strings)
            if is_end and self.found[place] is None:
                self.found[place] = count
        ended = [end is not None for end in self.found]
        return torch.tensor(ended, device=tokens.device)


class _Noise:
    """Makes the greatest logit that of a token drawn at random, by generators of each text's own.

    The place of the greatest of logits / temperature + Gumbel noise is distributed as the softmax
    of the former (Gumbel, Statistical theory of extreme values, 1954). A text's noise depends on
    nothing but its item and seed.
    """

    def __init__(self, keys: Sequence[str], sampling: Sampling) -> None:
        seeds = [int(digest(f"{sampling.seed} {key}")[:15], 16) for key in keys]
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._temperature = sampling.temperature

    def __call__(self, _tokens: Tensor, logits: Tensor) -> Tensor:
        size = logits.shape[1]
        waits = [torch.empty(size).exponential_(generator=one) for one in self._generators]
        return logits / self._temperature - torch.stack(waits).log().to(logits.device)
