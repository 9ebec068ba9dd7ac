"""Fast paths of scoring against naive references: batches, padding, shared passes, one token."""

from __future__ import annotations

import itertools
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from cabs_search.kinds.base import Item
from cabs_search.merging.chunks import keep_memory
from cabs_search.scoring.batches import PASS_TOKENS, batches, collate
from cabs_search.scoring.forward import FIRST_TOKEN_ONLY, evaluate, same_trunk
from cabs_search.spec.load import parse
from cabs_search.tasks.items import SPLITS, Items
from cabs_search.tasks.load import load_items
from tests.conftest import pico_values
from tests.scoring.test_architectures import ARCHITECTURES, SMALL, open_bench
from tests.support.standins import task_of

CPU = torch.device("cpu")


def items_of(kind: str, lengths: list[tuple[int, ...]], pad: int = 9, labels: int = 2) -> Items:
    """Return items of random tokens; ``lengths`` are those of each item's sequences."""
    draw = np.random.default_rng(0)
    rows = tuple(
        Item(
            sequences=tuple(
                {
                    "input_ids": draw.integers(10, 60, n).tolist(),
                    "token_type_ids": [0] * (n - 2) + [1] * 2,
                }
                for n in sizes
            ),
            label=float(draw.normal()) if kind == "regression" else int(draw.integers(labels)),
        )
        for sizes in lengths
    )
    return Items(
        task_of(kind),
        tuple(map(str, range(len(rows)))),
        rows,
        {"input_ids": pad, "token_type_ids": 0},
    )


def cost(parts: list[list[int]], lengths: Any, counts: Any) -> int:
    return sum(int(max(lengths[p]) * sum(counts[p])) + PASS_TOKENS for p in parts)


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cuts_cost_less(seed: int) -> None:
    draw = np.random.default_rng(seed)
    lengths, counts, budget = (
        draw.integers(3, 40, 9),
        draw.integers(1, 4 if seed % 2 else 2, 9),
        120,
    )
    found = [batch.tolist() for batch in batches(lengths, counts, budget)]
    assert sorted(itertools.chain(*found)) == list(range(9))
    order = sorted(range(9), key=lambda i: -lengths[i])
    best = np.inf
    for cuts in itertools.product((False, True), repeat=8):
        ends = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), 9]
        parts = [order[a:b] for a, b in itertools.pairwise(ends)]
        if all(len(p) == 1 or max(lengths[p]) * sum(counts[p]) <= budget for p in parts):
            best = min(best, cost(parts, lengths, counts))
    assert cost(found, lengths, counts) == best
    assert all(len(p) == 1 or max(lengths[p]) * sum(counts[p]) <= budget for p in found)


def test_little_is_padding_at_the_lengths_of_tweets() -> None:
    lengths = np.clip(np.random.default_rng(0).normal(30, 8, 75).round().astype(np.int64), 5, 40)
    padded = sum(int(lengths[b].max()) * len(b) for b in batches(lengths, np.ones_like(lengths)))
    assert 0.95 * padded < lengths.sum() <= padded


def test_one_item_longer_than_a_batch_is_a_batch() -> None:
    found = list(batches(np.array([5, 900, 5]), np.array([1, 3, 1]), 100))
    assert [batch.tolist() for batch in found] == [[1], [2, 0]]


@pytest.mark.parametrize("kind", ["classification", "multiple-choice"])
def test_a_batch_is_padded_as_by_hand(kind: str) -> None:
    sizes = [(7,), (3,), (5,)] if kind == "classification" else [(7, 3), (4, 5, 6), (2, 2)]
    items = items_of(kind, sizes)
    found = collate(items, np.array([2, 0]))
    chosen = [*items.rows[2].sequences, *items.rows[0].sequences]
    for field, tensor in found.items():
        pad = items.pad.get(field, 0)
        rows = [s.get(field, [1] * len(s["input_ids"])) for s in chosen]
        by_hand = torch.tensor([row + [pad] * (max(map(len, rows)) - len(row)) for row in rows])
        assert torch.equal(tensor, by_hand[None] if kind == "multiple-choice" else by_hand)
    assert set(found) == {"input_ids", "token_type_ids", "attention_mask"}


@pytest.mark.parametrize("kind", ["classification", "regression", "multiple-choice"])
def test_outcomes_of_a_batch_are_those_of_each_item(kind: str) -> None:
    counts = [2, 4, 3, 2, 4] if kind == "multiple-choice" else [1] * 5
    items = items_of(kind, [(4,) * n for n in counts])
    width = {"classification": 3, "regression": 1, "multiple-choice": 0}[kind]
    logits = torch.randn(
        (1, sum(counts)) if width == 0 else (5, width), generator=torch.Generator().manual_seed(0)
    )
    found = items.task.kind.outcome(
        items.task, transformers.utils.ModelOutput(logits=logits), items.rows
    )
    for i, item in enumerate(items.rows):
        mine = logits[0].split(counts)[i] if width == 0 else logits[i]
        if kind == "regression":
            assert found.predictions[i] == float(mine[0])
            assert (
                found.losses[i]
                == -found.scores[i]
                == np.float32((float(mine[0]) - item.label) ** 2)
            )
            continue
        loss = torch.nn.functional.cross_entropy(mine, torch.tensor(item.label))
        assert found.predictions[i] == int(mine.argmax())
        assert found.scores[i] == (int(mine.argmax()) == item.label)
        assert found.losses[i] == pytest.approx(float(loss), abs=1e-6)


def as_model(config: str, settings: dict[str, Any], head: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings, **changes)
    return getattr(transformers, f"AutoModel{head}").from_config(made).eval()


@pytest.mark.parametrize("name", FIRST_TOKEN_ONLY)
@pytest.mark.parametrize("kind", ["classification", "multiple-choice", "token-classification"])
def test_the_last_layer_computes_what_the_head_reads(name: str, kind: str) -> None:
    config = type(transformers.AutoConfig.for_model(name)).__name__
    heads = {"classification": "SequenceClassification", "multiple-choice": "MultipleChoice"}
    model = as_model(
        config,
        SMALL,
        f"For{heads.get(kind, 'TokenClassification')}",
        pad_token_id=9,
        type_vocab_size=2,
    )
    items = items_of(kind, [(7, 5), (3, 6)] if kind == "multiple-choice" else [(7,), (3,), (5,)])
    seen: list[int] = []
    model.base_model.encoder.layer[-1].intermediate.register_forward_hook(
        lambda _, i, __: seen.append(i[0].shape[1])
    )
    if kind == "token-classification":
        inputs = collate(items, np.arange(3))
        with pytest.raises(AssertionError):  # these have no marks; the forward is what counts here
            evaluate(model, items, np.arange(3), CPU)
        assert seen == [inputs["input_ids"].shape[1]]
        return
    rows = np.arange(len(items))
    found = evaluate(model, items, rows, CPU)
    with torch.inference_mode():
        whole = items.task.kind.outcome(items.task, model(**collate(items, rows)), items.rows)
    assert seen == [1, 7], "and nothing stays behind"
    assert found.predictions.tolist() == whole.predictions.tolist()
    assert found.losses == pytest.approx(whole.losses, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["RoBERTa, bare base", "DistilBERT", "ModernBERT", "GPT-2, bare base"]
)
def test_attention_is_sdpa_where_there_is_one(name: str) -> None:
    config, _, settings = ARCHITECTURES[name]
    assert (
        as_model(config, settings, "ForSequenceClassification").config._attn_implementation
        == "sdpa"
    )


def shared_spec(pico: Path) -> Any:
    """Return a spec of two tasks on one file, each with its own head, and a third on another."""
    values = pico_values(pico)
    values["tasks"]["animal"] = values["tasks"]["mood"] | {"expert": "animal"}
    return parse(values)


def test_tasks_on_the_same_items_share_a_pass(pico: Path, tmp_path: Path) -> None:
    spec = shared_spec(pico)
    bench = open_bench(spec, tmp_path)
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    rows = dict.fromkeys(spec.tasks, np.arange(8))
    passes = dict.fromkeys(spec.tasks, 0)
    for task in spec.tasks:
        trunk = bench.models[task].base_model.encoder.layer[0]
        trunk.register_forward_hook(lambda *_, t=task: passes.__setitem__(t, passes[t] + 1))
    together = bench.score(items, rows)
    assert passes == {"mood": 1, "animal": 0, "pair": 1}
    for task in spec.tasks:
        alone = bench.score({task: items[task]}, {task: rows[task]})[task]
        assert np.array_equal(together[task].losses, alone.losses)
        assert np.array_equal(together[task].predictions, alone.predictions)
        assert np.array_equal(together[task].scores, alone.scores)
    assert passes == {"mood": 2, "animal": 1, "pair": 2}, "and nothing stays behind"
    assert not np.array_equal(together["mood"].losses, together["animal"].losses)
    other = bench.score(items, rows | {"animal": np.arange(8)[::-1]})
    assert passes == {"mood": 3, "animal": 2, "pair": 3}, "other rows, another pass"
    assert other["animal"].losses[::-1] == pytest.approx(together["animal"].losses, abs=1e-5)


def test_other_labels_of_the_same_texts_are_scored_in_the_same_pass(
    pico: Path, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    lines = (pico / "mood.csv").read_text().splitlines()
    texts = dict.fromkeys(line.rsplit(",", 1)[0] for line in lines[1:])
    path.write_text(
        "text,label,other\n" + "".join(f"{t},{i % 2},{i % 3}\n" for i, t in enumerate(texts))
    )
    values = pico_values(pico)
    task = values["tasks"]["mood"] | {"dataset": {"csv": str(path)}}
    values["tasks"] = {"mood": task, "animal": task | {"label": "other"}}
    spec = parse(values)
    bench = open_bench(spec, tmp_path)
    passes: list[str] = []
    for name in spec.tasks:
        first = bench.models[name].base_model.encoder.layer[0]
        first.register_forward_hook(lambda *_, n=name: passes.append(n))
    found = {name: load_items(spec, name) for name in spec.tasks}
    for split in SPLITS:
        items = {name: found[name][split] for name in spec.tasks}
        assert items["mood"].keys != items["animal"].keys
        bench.score(items, dict.fromkeys(spec.tasks, np.arange(12)))
    assert set(passes) == {"mood"}


def test_trunks_are_the_same_where_all_but_the_head_is() -> None:
    one, other = (
        as_model("BertConfig", SMALL, "ForSequenceClassification", num_labels=n) for n in (2, 5)
    )
    other.base_model.load_state_dict(one.base_model.state_dict())
    assert same_trunk(one, other)
    with torch.no_grad():
        other.base_model.pooler.dense.bias[0] += 1
    assert not same_trunk(one, other)
    assert not same_trunk(
        one, as_model("BertConfig", SMALL, "ForSequenceClassification", layer_norm_eps=1e-6)
    )
    assert not same_trunk(one, as_model("BertConfig", SMALL, "ForTokenClassification"))


def test_tasks_of_one_expert_share_a_pass(pico: Path, tmp_path: Path) -> None:
    values = pico_values(pico)
    values["tasks"] = {
        "a": values["tasks"]["mood"] | {"expert": "mood"},
        "b": values["tasks"]["mood"] | {"expert": "mood"},
    }
    spec = parse(values)
    bench = open_bench(spec, tmp_path)
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    passes = []
    bench.models["mood"].base_model.register_forward_hook(lambda *_: passes.append(1))
    found = bench.score(items, dict.fromkeys(spec.tasks, np.arange(8)))
    assert len(passes) == 1
    assert np.array_equal(found["a"].losses, found["b"].losses)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_buffers_of_one_batch_serve_the_next() -> None:
    import resource

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep_memory()
    torch.ones(2, 1 << 20), torch.ones(2, 1 << 20)
    before = faults()
    for _ in range(10):
        torch.ones(2, 1 << 20), torch.ones(2, 1 << 20)
    touched = 10 * 2 * (8 << 20) // resource.getpagesize()
    assert faults() - before < touched / 4
