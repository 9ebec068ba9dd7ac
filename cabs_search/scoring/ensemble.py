"""Ensembles: outputs of several models, averaged item by item.

Of a task, every member is scored with the task's own head, as a merged model is. Weights are a
model's share of the average:

    mean      equal ones of probabilities, or of a regression's numbers; of choices by likelihood,
              of the likelihood of each choice
    packllm   of item x: exp(mᵢ/τ) / Σ exp(mⱼ/τ), mᵢ the mean log-likelihood of the prompt's tokens
              (minus the log of its perplexity), τ = 1; they weigh logits (PackLLM-sim,
              arXiv 2404.11531)

Logits are averaged as log-likelihoods of whole choices: that is PackLLM where a choice is one
token. Of longer ones its normalisers behind the first token, which take all logits of all models
at once, are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cabs_search.kinds.base import Item, Outcome, Targets, output_of, to_host
from cabs_search.kinds.causal import as_targets, sums_by_part, targets_of
from cabs_search.merging.recipe import Recipe
from cabs_search.scoring.forward import Scored, empty_outcome, fill, outputs_by_batch
from cabs_search.tasks.items import Ints, Items

if TYPE_CHECKING:
    from cabs_search.scoring.workbench import Workbench


@dataclass(frozen=True, eq=False)
class _Read:
    """Outputs of the members on one batch of a task's rows."""

    batch: Ints
    outputs: list[Any]
    """Outputs by member, in main memory."""


@torch.inference_mode()
def score_ensemble(
    bench: Workbench, recipe: Recipe, items: Mapping[str, Items], rows: Mapping[str, Ints]
) -> dict[str, Outcome]:
    """Score an ensemble; the workbench becomes one member after another.

    Args:
        bench: the workbench.
        recipe: the ensemble.
        items: by task, of kinds that the ensemble can average.
        rows: the rows of each task to score, by task.

    Returns:
        Outcomes by task, in the order of ``rows``.

    """
    chosen = {task: _chosen(items[task], rows[task]) for task in rows}
    weighs = recipe.ensemble == "packllm"
    read = {task: with_prompts(own) for task, own in chosen.items()} if weighs else chosen
    every = {task: np.arange(len(own), dtype=np.int64) for task, own in chosen.items()}
    found: dict[str, list[_Read]] = {task: [] for task in rows}
    for number, member in enumerate(recipe.members):
        bench.materialize(member)
        for tasks, scored in bench.passes(read, every):
            for place, (batch, outputs) in enumerate(outputs_by_batch(scored, bench.device)):
                for task, output in zip(tasks, outputs, strict=True):
                    if number == 0:
                        found[task].append(_Read(batch, []))
                    found[task][place].outputs.append(_to_host(output))
    average = _weighed if weighs else _mean
    outcomes = {}
    for task, parts in found.items():
        own = chosen[task]
        outcomes[task] = empty_outcome(own, every[task])
        one: Scored = (None, own, every[task])
        for part in parts:
            fill(outcomes[task], part.batch, one, average(part, own))
    return outcomes


def _chosen(items: Items, rows: Ints) -> Items:
    return replace(
        items,
        keys=tuple(items.keys[i] for i in rows),
        rows=tuple(items.rows[i] for i in rows),
        groups=(),
    )


def _to_host(output: Any) -> Any:
    return to_host(output) if isinstance(output, Tensor) else output_of(to_host(output.logits))


def _mean(read: _Read, items: Items) -> Any:
    return items.task.kind.averaged(read.outputs, [items.rows[i] for i in read.batch])


def _weighed(read: _Read, items: Items) -> Any:
    """Return the output of PackLLM; ``items`` are without prompts."""
    chosen = [items.rows[i] for i in read.batch]
    lengths = [prompt_length(item) for item in chosen]
    pairs = [_split(output, chosen, lengths) for output in read.outputs]
    weights = prompt_weights([own for own, _ in pairs])
    parts = torch.tensor([len(targets_of(item).counts) for item in chosen])
    of_parts = weights.repeat_interleave(parts, dim=1)
    sums = torch.stack([torch.cat(sums_by_part(own, chosen)).double() for _, own in pairs])
    return as_targets((of_parts * sums).sum(0).float(), chosen)


def prompt_weights(prompts: Sequence[Sequence[Tensor]]) -> Tensor:
    """Return each model's weight on each item, float64, [models, items].

    Args:
        prompts: by model and item, log-likelihoods of the prompt's tokens, [tokens]; of an item
            without any, all models weigh the same.

    """
    means = [
        [float(own.double().mean()) if len(own) else 0.0 for own in of_model]
        for of_model in prompts
    ]
    return torch.tensor(means, dtype=torch.float64).softmax(0)


def _split(
    output: Tensor, items: Sequence[Item], lengths: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """Split the output of ``with_prompts`` into each item's prompt, and the items' own targets."""
    sizes = []
    for item, length in zip(items, lengths, strict=True):
        sizes += [length, sum(targets_of(item).counts)]
    pieces = output.split(sizes)
    return list(pieces[::2]), torch.cat(pieces[1::2])


def prompt_length(item: Item) -> int:
    """Return the number of tokens of an item's prompt that can be predicted: all but the first.

    The prompt is what stands before the first choice.
    """
    return targets_of(item).places[0]


def with_prompts(items: Items) -> Items:
    """Return items whose first part are the tokens of the prompt, before their own parts."""
    return replace(items, rows=tuple(map(_with_prompt, items.rows)))


def _with_prompt(item: Item) -> Item:
    own, length = targets_of(item), prompt_length(item)
    tokens = item.sequences[0]["input_ids"][1 : length + 1]
    targets = Targets(
        sequences=(0,) * length + own.sequences,
        places=tuple(range(length)) + own.places,
        tokens=tuple(tokens) + own.tokens,
        counts=(length, *own.counts),
    )
    return replace(item, targets=targets)
