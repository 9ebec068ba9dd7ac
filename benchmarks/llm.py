"""A candidate of SmolLM2-135M's shapes, scored on multiple choice: against lm-evaluation-harness on
the same documents, against mergekit's merge and the harness, and against a bare forward.
"""

from __future__ import annotations

import json
import math
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import families, program
from benchmarks.evaluate import bare
from benchmarks.figures import Ledger, Target, interleaved, threads
from benchmarks.rivals import LmEval, Mergekit
from cabs_search.kinds.base import Outcome
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import BASE, Recipe, make_recipe
from cabs_search.quickstart.data import headline, topic
from cabs_search.scoring.workbench import Workbench
from cabs_search.tasks.items import Items

DOCUMENTS, CONFIRM, EXAMPLES = 16, 4, 16
"""Documents of each task to score, those that a study needs beside, and those that few-shot
examples are drawn from."""
COMMON = {
    "dataset_path": "json",
    "test_split": "test",
    "validation_split": "validation",
    "fewshot_split": "train",
    "num_fewshot": 3,
    "output_type": "multiple_choice",
    "doc_to_target": "{{label}}",
    "metric_list": [{"metric": "acc"}],
    "metadata": {"version": 1},
}
TASKS: Mapping[str, dict[str, Any]] = {
    "choices of some tokens": {
        "task": "headlines",
        "doc_to_text": "Article: {{lead}}\nHeadline:",
        "doc_to_choice": "{{titles}}",
    },
    "choices of one token": {
        "task": "letters",
        "doc_to_text": "{{lead}}\n{% for title in titles %}{{'ABCD'[loop.index0]}}. {{title}}\n"
        "{% endfor %}Answer:",
        "doc_to_choice": list("ABCD"),
        "fewshot_config": {"sampler": "first_n"},
    },
}
"""As of ARC and HellaSwag, with examples of each document's own; and as of MMLU, with the same for
all, of which the harness reads all four choices in one pass."""
METHOD, RIVAL, LAMBDAS = "task-arithmetic", "task_arithmetic", (0.4, 0.7)
ROUNDS = 2
WORDS = 24
"""Of an article's beginning."""
THREADS = 1
"""As many as a worker has."""
BATCHES = (1024, 2048)
"""Tokens a batch that a bare forward is tried with; the fastest counts."""
VOCABULARY, END = 49152, "<|endoftext|>"


def measure(ledger: Ledger) -> None:
    """Each task by itself, with three examples before each document."""
    if why := LmEval.missing():
        ledger.say(f"  {why}")
        return
    with threads(THREADS), families.scratch() as folder, ExitStack() as stack:
        base, experts = families.smollm2(make_tokenizer)
        spec = write_spec(folder, base, experts)
        harness = stack.enter_context(LmEval(folder / "lm_eval.log", THREADS))
        harness.ask({"act": "items", "spec": str(spec), "out": f"{folder}/items"})
        items = pickle.loads((folder / "items").read_bytes())
        kit = None
        if why := Mergekit.missing():
            ledger.say(f"  {why}")
        else:
            made = Mergekit(base, experts, folder / "merged", THREADS, loads="")
            kit = stack.enter_context(made)
        family, tasks = Family.open(base, experts), {name: i.task for name, i in items.items()}
        bench = Workbench(family, tasks, VectorCache(folder / "cache"), device="cpu")
        for what, fields in TASKS.items():
            rival = Rival(folder, base, fields["task"], harness, kit)
            _measure_task(ledger, what, bench, items[rival.task], rival)


class Rival:
    """mergekit's merge to disk, and lm-evaluation-harness on it, for one task."""

    def __init__(
        self, folder: Path, base: Path, task: str, harness: LmEval, kit: Mergekit | None
    ) -> None:
        self._folder, self._base, self.task = folder, base, task
        self._harness, self.kit = harness, kit
        self.seconds: list[dict[str, float]] = []
        self.accuracy = math.nan

    def candidate(self) -> None:
        """Merge and evaluate one candidate; without mergekit the base stands for it."""
        merge, model = 0.0, self._base
        if self.kit is not None:
            merge = self.kit.seconds("run_merge", RIVAL, weight=LAMBDAS[0])
            model = self._folder / "merged"
        job = {"act": "evaluate", "model": str(model), "tokenizer": str(self._base)}
        answer = self._harness.ask(job | {"include": str(self._folder), "tasks": [self.task]})
        self.seconds.append(answer["seconds"] | {"merge": merge})
        self.accuracy = answer["metrics"][self.task]["acc,none"]

    def median(self, of: Callable[[Mapping[str, float]], float]) -> float:
        """Median of what a function makes of the seconds of parts, the first round left out."""
        return float(np.median([of(seconds) for seconds in self.seconds[1:]]))


def _measure_task(ledger: Ledger, what: str, bench: Workbench, items: Items, rival: Rival) -> None:
    every, experts = np.arange(len(items)), tuple(bench.family.experts)
    method = make_method(METHOD, experts)
    recipes = [make_recipe(method, dict.fromkeys(experts, value)) for value in LAMBDAS]
    turns = cycle(recipes)

    def score(recipe: Recipe) -> Outcome:
        bench.materialize(recipe)
        return program.score(bench, {rival.task: items}, {rival.task: every})[rival.task]

    tokens = int((items.lengths * items.counts).sum())
    mean = round(tokens / items.counts.sum())
    ours: dict[str, Callable[[], object]] = {"ours": lambda: score(next(turns))}
    trunk = bare(bench.models[BASE].base_model, tokens, mean, BATCHES)
    alone = interleaved(ours | {"bare": trunk}, rounds=7, budget=math.inf)
    times = interleaved(ours | {"rival": rival.candidate}, rounds=ROUNDS, budget=math.inf)
    values: dict[str, Any] = {"part": "llm", "unit": "documents/s"}
    values["what"] = f"documents with {what}"
    note = f"{len(items)} documents, 3 examples each: {tokens:,} tokens as we read them"
    ledger.add(
        value=len(items) / alone["ours"],
        rival="trunk alone, as many tokens, none padded",
        rival_value=len(items) / alone["bare"],
        target=Target(of="ratio", least=0.7),
        note=note,
        **values,
    )
    values["value"] = len(items) / times["ours"]
    rivals: list[tuple[str, float, float | None]] = [
        ("lm_eval: its requests", rival.median(lambda s: s["loop"] - s["detect"]), None),
        ("lm_eval: simple_evaluate", rival.median(lambda s: s["evaluate"]), 3),
    ]
    if rival.kit:
        whole = rival.median(lambda s: s["merge"] + s["whole"])
        rivals.append(("mergekit's run_merge and lm_eval", whole, 5))
    for name, seconds, least in rivals:
        target = None if least is None else Target(of="ratio", least=least)
        ledger.add(rival=name, rival_value=len(items) / seconds, target=target, **values)
    found = items.task.measure.compute(score(recipes[0]).predictions, items.labels)
    if rival.kit:
        ledger.add(
            part="llm",
            what=f"accuracy with {what}, less lm_eval's on mergekit's merge",
            value=found - rival.accuracy,
            unit="",
            target=Target(of="value", least=0, most=0),
        )


def write_spec(folder: Path, base: Path, experts: Mapping[str, Path]) -> Path:
    """Write documents, the harness's tasks on them, and a study that names these."""
    rows = list(_documents())
    data = {"test": rows[:DOCUMENTS], "validation": rows[DOCUMENTS : DOCUMENTS + CONFIRM]}
    data["train"] = rows[DOCUMENTS + CONFIRM :]
    for split, own in data.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    files = {split: f"{folder}/{split}.jsonl" for split in data}
    tasks = {}
    for fields in TASKS.values():
        task = COMMON | {"dataset_kwargs": {"data_files": files}} | fields
        name = str(task["task"])
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
        source = {"harness": name, "include": str(folder), "allow_test": True}
        confirm = {"split": "validation"}
        tasks[name] = {"dataset": source, "metric": "acc", "split": "test", "confirm": confirm}
    values = {"name": "llm", "base": str(base), "tasks": tasks}
    values["experts"] = {name: str(path) for name, path in experts.items()}
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump(values))
    return spec


def _documents() -> Iterator[dict[str, Any]]:
    """First lines of articles, each with its title and three others."""
    draw = random.Random(0)
    rows = [row for row in headline("heldout") if row["label"] == 1]
    draw.shuffle(rows)
    titles = [row["headline"] for row in rows]
    for row in rows[: DOCUMENTS + CONFIRM + EXAMPLES]:
        others = [title for title in draw.sample(titles, 4) if title != row["headline"]]
        choices = [row["headline"], *others[:3]]
        draw.shuffle(choices)
        right = choices.index(row["headline"])
        yield {"lead": " ".join(row["body"].split()[:WORDS]), "titles": choices, "label": right}


def make_tokenizer() -> Any:
    """Byte-level BPE of the quickstart's articles, of GPT-2's and SmolLM2's kind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator((row["text"] for row in topic("train")), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=END, eos_token=END)
