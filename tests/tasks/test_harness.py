"""Tasks of lm-evaluation-harness as items, with stand-ins of its objects: it is not installed.

tests/scoring/test_lm_eval.py has the harness itself.
"""

from __future__ import annotations

import random
from collections import Counter
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import transformers

from cabs_search.kinds.generation import GENERATION, Written
from cabs_search.spec import harness as found_tasks
from cabs_search.spec.harness_groups import members_of
from cabs_search.spec.load import load_reachable, parse
from cabs_search.spec.task import DataSource, Task
from cabs_search.tasks import harness
from cabs_search.tasks.harness import _hash, read_documents, row_of, score_texts
from cabs_search.tasks.items import SPLITS, tokenize
from cabs_search.tasks.load import load_items
from tests.support.standins import make_base, make_tokenizer, rows_of, task_of

MC = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
OWN = DataSource(harness="quiz")
MEAN = {"metric": "letters", "aggregation": "mean", "higher_is_better": True}
WRITES = {
    "output_type": "generate_until",
    "generation_kwargs": {"until": ["\n", "Q:"], "max_gen_toks": 7},
    "metric_list": [{"metric": "each", "aggregation": "list", "higher_is_better": True}, MEAN],
    "filter_list": [{"name": "first"}, {"name": "all"}],
}


class Opened:
    """A multiple-choice task as the harness opens it, with two examples before each document."""

    multiple_input = 0

    def __init__(self, **splits: list[dict[str, Any]]) -> None:
        self.dataset, self.instances = splits, list[Any]()
        self.config = SimpleNamespace(test_split="test", validation_split=None, num_fewshot=2)
        self.sampler = SimpleNamespace(sample=self._sample)

    def _sample(self, count: int) -> list[dict[str, Any]]:
        return self.draw.sample(self.dataset["train"], count)

    def set_config(self, key: str, value: Any) -> None:
        setattr(self.config, key, value)

    def set_fewshot_seed(self, seed: int) -> None:
        self.draw = random.Random(seed)

    def build_all_requests(self, **_: Any) -> None:
        self.instances = []
        for number, doc in enumerate(self.dataset[self.config.test_split]):
            examples = [f"{one['start']} {one['ends'][0]}\n" for one in self.sampler.sample(2)]
            context = "".join(examples) + doc["start"]
            self.instances += [
                SimpleNamespace(doc=doc, doc_id=number, arguments=(context, f" {end}"))
                for end in doc["ends"]
            ]

    def doc_to_text(self, doc: dict[str, Any]) -> Any:
        return doc["start"]

    def doc_to_choice(self, doc: dict[str, Any]) -> Any:
        return doc["ends"]

    def doc_to_target(self, doc: dict[str, Any]) -> Any:
        return doc["right"]


def quiz_task(**changes: Any) -> Task:
    return Task(dataset=DataSource(harness="quiz", **changes), max_length=60)


@pytest.fixture(autouse=True)
def _one_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (found_tasks, harness):
        monkeypatch.setattr(module, "members", lambda *_: ("quiz",))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Plain values of a study with one task of a harness that has this one only."""
    monkeypatch.setattr(found_tasks, "_entry", lambda *_: (Path("quiz.yaml"), MC))
    base = str(make_base(tmp_path / "base", "llama"))
    tasks = {"quiz": {"dataset": {"harness": "quiz"}, "max_length": 60}}
    return {"name": "x", "base": base, "experts": {"one": base}, "tasks": tasks}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    kind = "choices-by-likelihood"
    test, train, other = (rows_of(kind, seed, count) for seed, count in ((1, 40), (2, 9), (3, 8)))
    one = Opened(test=[*test, train[0]], train=train, validation=other + train[3:] + test[:12])
    monkeypatch.setattr(harness, "open_task", lambda *_: one)
    return one


def test_without_the_extra_one_line_names_it(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_: str) -> str:
        raise PackageNotFoundError

    monkeypatch.undo()
    monkeypatch.setattr(found_tasks, "version", missing)
    with pytest.raises(
        ValueError, match=r"^spec: tasks.quiz.dataset.harness: .*cabs-search\[llm\]"
    ):
        parse(spec)
    file = tmp_path / "spec.yaml"
    file.write_text(str(spec))
    planned, _ = load_reachable(file)
    assert planned.tasks["quiz"].dataset.harness == "quiz", "a plan goes on, see its task's items"


def test_a_task_says_itself_what_it_is(spec: dict[str, Any]) -> None:
    task = parse(spec).tasks["quiz"]
    assert (str(task.kind), task.metric, task.text) == (
        "choices-by-likelihood",
        "acc_norm",
        "context",
    )
    again = parse(parse(spec).as_dict(), locations=False).tasks["quiz"]
    assert again == task, "what was found out stands in the study's folder"
    for changes, message in (
        ({"kind": "right-choices"}, "tasks.quiz.kind: must be choices-by-likelihood, but got"),
        ({"metric": "acc_bytes"}, "tasks.quiz.metric: must be acc_norm or acc, but got acc_bytes"),
        ({"text": "start"}, "tasks.quiz.text: a task of lm-evaluation-harness says it itself"),
        ({"kind": "regression"}, "tasks.quiz.kind: regression is no kind of a task of"),
        ({"dataset": {"csv": "x", "num_fewshot": 2}}, "tasks.quiz.dataset: num_fewshot goes with"),
    ):
        with pytest.raises(ValueError, match=message):
            load_items(parse(spec | {"tasks": {"quiz": spec["tasks"]["quiz"] | changes}}), "quiz")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"output_type": "x"}, "must be multiple_choice or .* generate_until, but quiz is x"),
        (MC | {"process_results": "/a/utils.score"}, r"function of its own \(utils.score\)"),
        (MC | {"filter_list": [{"name": "x"}]}, "must have no filter_list, but quiz has one"),
        (MC | {"metric_list": [{"metric": "f1"}]}, "but quiz has f1"),
        (MC | {"metric_list": [{"metric": "acc", "aggregation": "median"}]}, "but quiz has acc"),
        (WRITES | {"metric_list": [MEAN | {"aggregation": "median"}]}, "but quiz has letters"),
        (WRITES | {"metric_list": [MEAN | {"higher_is_better": False}]}, "one number a document"),
        (WRITES | {"repeats": 3}, "must have one text, but quiz repeats them"),
        (WRITES | {"unsafe_code": True}, "generated code is not run here, but quiz runs it"),
        (WRITES | {"generation_kwargs": {"do_sample": True}}, "greedily, but quiz samples them"),
        (WRITES | {"generation_kwargs": {"temperature": 0.7}}, "greedily, but quiz samples them"),
        (WRITES | {"generation_kwargs": {"num_beams": 2}}, "have no num_beams, but quiz sets it"),
        (MC | {"num_fewshot": 0}, "num_fewshot: must be 0, which quiz is fixed to, but got 3"),
    ],
)
def test_tasks_that_cannot_be_scored_here_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(found_tasks, "_entry", lambda *_: (Path("quiz.yaml"), config))
    with pytest.raises(ValueError, match=message) as caught:
        found_tasks.describe("tasks.quiz", DataSource(harness="quiz", num_fewshot=3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (MC, "choices-by-likelihood"),
        (MC | {"process_results": "/a/utils.process_results_mc2"}, "right-choices"),
        (
            {"output_type": "loglikelihood", "metric_list": [{"metric": "acc"}]},
            "greedy-continuation",
        ),
        (
            {
                "output_type": "loglikelihood_rolling",
                "metric_list": [{"metric": "bits_per_byte"}],
                "process_results": "/a/utils.count",
            },
            "language-modeling",
        ),
        (WRITES, "generation"),
    ],
)
def test_the_kind_goes_by_the_requests(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], kind: str
) -> None:
    monkeypatch.setattr(found_tasks, "_entry", lambda *_: (Path("quiz.yaml"), fields))
    assert str(found_tasks.describe("tasks.quiz", OWN).kind) == kind


def test_requests_become_the_items_of_their_kind() -> None:
    """Without examples, an item is what the kind makes of the columns; with some, another one."""
    tokenizer, config = make_tokenizer("llama"), transformers.LlamaConfig()
    doc = rows_of("choices-by-likelihood", 1, 1)[0]
    bare = [(doc["start"], f" {end}") for end in doc["ends"]]
    task = task_of("choices-by-likelihood", metric="acc_norm")
    texts = task.kind.texts("t", task, doc)
    expected = task.kind.encode("t", task, tokenizer, config, texts, doc["right"])
    own = Task(dataset=OWN, metric="acc_norm", max_length=task.max_length)
    row = row_of("t", own, Opened(), doc, bare)
    shot = row_of("t", own, Opened(), doc, [(f"the cat\n{context}", end) for context, end in bare])
    assert (row.group, row.text) == (shot.group, shot.text), "examples do not make texts differ"
    assert row.key != shot.key
    items = tokenize("t", tokenizer, config, own, [row, shot])
    assert items.rows[0] == expected
    assert items.rows[0].targets.tokens == items.rows[1].targets.tokens  # type: ignore[union-attr]
    assert items.rows[1].longest > items.rows[0].longest


def test_choices_in_contexts_and_several_right_ones() -> None:
    doc = {"start": " sleeps", "ends": ["the cat", "a dog", "it"], "right": 1}
    inputs = Opened()
    inputs.multiple_input = 3
    inputs.doc_to_text, inputs.doc_to_target = inputs.doc_to_target, inputs.doc_to_text  # type: ignore[method-assign]
    asked = [(end, " sleeps") for end in doc["ends"]]
    row = row_of("t", Task(dataset=OWN), inputs, doc, asked)
    assert (row.texts, row.label, row.requests) == (
        (" sleeps", "the cat", "a dog", "it"),
        1,
        tuple(asked),
    )
    several = Opened()
    several.process_results = lambda _, results: {  # type: ignore[attr-defined]
        "acc": sum(np.exp([results[0][0], results[2][0]]))
        / sum(np.exp([log for log, _ in results]))
    }
    task = Task(kind="right-choices", dataset=OWN)  # type: ignore[arg-type]
    assert row_of("t", task, several, doc, asked).label == (1, 0, 1)
    several.process_results = lambda _, results: {"acc": float(results[0][0] == 0.0)}  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="the score must be the share of the right choices"):
        row_of("t", task, several, doc, asked)
    for right in ([0, 1], 3, "nothing"):
        with pytest.raises(ValueError, match=r"one choice of 3 must be right, but a document has"):
            row_of("t", Task(dataset=OWN), Opened(), doc | {"right": right}, asked)


def test_bytes_of_a_text_are_the_harnesss_count() -> None:
    task = Task(kind="language-modeling", dataset=OWN)  # type: ignore[arg-type]
    rolling = SimpleNamespace(
        process_results=lambda doc, logs: {"bits_per_byte": (*logs, doc["n"])}
    )
    row = row_of("t", task, rolling, {"n": 9}, [("a text",)])
    assert (row.texts, row.label, row.requests) == (("a text",), 9.0, ())
    rolling.process_results = lambda doc, logs: {"bits_per_byte": (2 * logs[0], doc["n"])}
    with pytest.raises(ValueError, match="no bytes can be counted"):
        row_of("t", task, rolling, {"n": 9}, [("a text",)])


def test_splits_are_apart_and_examples_are_in_neither(spec: dict[str, Any], opened: Opened) -> None:
    with pytest.raises(
        ValueError, match="must be another than test, .*train, validation.*allow_test is true"
    ):
        load_items(parse(spec), "quiz")
    dataset = {"harness": "quiz", "allow_test": True}
    spec["tasks"]["quiz"]["dataset"] = dataset
    with pytest.warns(UserWarning, match="1 of 41 documents are left out: they are few-shot"):
        items = load_items(parse(spec), "quiz")
    search, confirm = (set(items[split].keys) for split in ("search", "confirm"))
    assert (len(search), len(confirm), search & confirm) == (20, 20, set())
    spec["tasks"]["quiz"] |= {
        "dataset": {"harness": "quiz"},
        "search": {"split": "validation"},
        "confirm": {"split": "test"},
    }
    with (
        pytest.warns(UserWarning, match="6 of 26 documents are left out: they are few-shot"),
        pytest.warns(UserWarning, match="12 search rows are left out: the confirm split has them"),
        pytest.warns(UserWarning, match="1 of 41 documents are left out: they are few-shot"),
    ):
        items = load_items(parse(spec), "quiz")
    assert (len(items["search"]), len(items["confirm"])) == (8, 40)
    spec["tasks"]["quiz"] |= {"dataset": dataset, "search": {"items": 25}}
    with pytest.warns(UserWarning, match="1 of 41 documents are left out: they are few-shot"):
        items = load_items(parse(spec), "quiz")
    assert [len(items[split]) for split in SPLITS] == [25, 15], "test is its own split by name"
    spec["tasks"]["quiz"]["search"] = {"split": "dev"}
    with pytest.raises(ValueError, match="must be one of test, train, validation, but got dev"):
        load_items(parse(spec), "quiz")
    del opened.dataset["train"][1:]
    with pytest.raises(ValueError, match="tasks.quiz.dataset: requests cannot be built: Sample"):
        load_items(parse(spec | {"tasks": {"quiz": {"dataset": dataset}}}), "quiz")


class Writes(Opened):
    """A task whose answers are texts; its score counts letters of the document's first choice."""

    multiple_target = 0

    def __init__(self, **splits: list[dict[str, Any]]) -> None:
        super().__init__(**splits)
        self.config.doc_to_choice = None
        self._filters = [SimpleNamespace(name="first", apply=partial(self._filter, 1))]
        self._filters.append(SimpleNamespace(name="all", apply=partial(self._filter, None)))

    @staticmethod
    def _filter(most: int | None, requests: list[Any]) -> None:
        (request,) = requests
        assert not request.filtered_resps, "a request of its own"
        request.filtered_resps["any"] = request.resps[0][:most]

    def build_all_requests(self, **_: Any) -> None:
        super().build_all_requests()
        self.instances = self.instances[:: len(self.dataset["test"][0]["ends"])]

    def doc_to_target(self, doc: dict[str, Any]) -> Any:
        return doc["ends"][0]

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        found = [letter in doc["ends"][0] for letter in results[0]]
        return {"each": found, "letters": np.mean(found) if found else 0}


def test_texts_are_scored_by_filter_and_metric(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of("choices-by-likelihood", 1, 20)
    for row in rows:
        row["ends"] = row["ends"][:3]
    opened = Writes(test=rows, train=rows_of("choices-by-likelihood", 2, 9))
    monkeypatch.setattr(found_tasks, "_entry", lambda *_: (Path("quiz.yaml"), WRITES))
    monkeypatch.setattr(harness, "open_task", lambda *_: opened)
    monkeypatch.setattr(harness, "scorer", lambda *_: opened)
    dataset = {"harness": "quiz", "allow_test": True}
    spec["tasks"]["quiz"]["dataset"] = dataset
    task = parse(spec).tasks["quiz"]
    assert (str(task.kind), task.metric, task.text) == ("generation", "letters", "prompt")
    assert (task.stop, task.max_new_tokens, task.dataset.filter) == (("\n", "Q:"), 7, "first")
    assert parse(parse(spec).as_dict(), locations=False).tasks["quiz"] == task
    items = load_items(parse(spec), "quiz")["search"]
    first = items.rows[0]
    assert items.tokenizer.decode(first.sequences[0]["input_ids"]).count("\n") == 2, "examples"
    assert first.label == [first.marks.document["ends"][0]]
    text = f"{first.label[0][0]}?"
    for fields, expected in (({}, 1.0), ({"filter": "all"}, 0.5)):
        spec["tasks"]["quiz"]["dataset"] = dataset | fields
        of_filter = parse(spec).tasks["quiz"]
        assert score_texts(of_filter, [first.marks, None], [text, text]) == [expected, 0.0]
    other = load_items(parse(spec), "quiz")["search"]
    assert (other.keys, other.digest != items.digest) == (items.keys, True)
    spec["tasks"]["quiz"] |= {"dataset": dataset, "metric": "each"}
    with pytest.raises(ValueError, match="quiz.metric: must be letters, but got each"):
        load_items(parse(spec), "quiz")
    spec["tasks"]["quiz"] |= {"dataset": dataset | {"filter": "last"}, "metric": None}
    with pytest.raises(ValueError, match="filter: must be one of first, all, but got last"):
        parse(spec)
    monkeypatch.setattr(opened, "process_results", lambda *_: {"letters": [1, 0]})
    spec["tasks"]["quiz"]["dataset"] = dataset
    with pytest.raises(ValueError, match="metric: a text cannot be scored: letters must be one n"):
        load_items(parse(spec), "quiz")


class Follows(Writes):
    """A task whose documents have several instructions: a text must have each letter of a word."""

    def process_results(self, doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
        return {"inst_level_strict_acc": [letter in results[0] for letter in doc["ends"][0]]}

    def aggregation(self) -> dict[str, Any]:
        return {"inst_level_strict_acc": lambda lists: np.mean(np.concatenate(lists))}


def test_a_document_counts_by_its_instructions(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Follows(
        test=rows_of("choices-by-likelihood", 1, 20), train=rows_of("choices-by-likelihood", 2, 9)
    )
    for row in (row for rows in opened.dataset.values() for row in rows):
        row["ends"] = row["ends"][:3]
    entry = MEAN | {"metric": "inst_level_strict_acc", "aggregation": "u.agg_inst_level_acc"}
    config = WRITES | {"metric_list": [entry], "filter_list": None}
    monkeypatch.setattr(found_tasks, "_entry", lambda *_: (Path("quiz.yaml"), config))
    monkeypatch.setattr(harness, "open_task", lambda *_: opened)
    monkeypatch.setattr(harness, "scorer", lambda *_: opened)
    opened._filters = [SimpleNamespace(name="none", apply=partial(opened._filter, None))]
    spec["tasks"]["quiz"]["dataset"] = {"harness": "quiz", "allow_test": True}
    task = parse(spec).tasks["quiz"]
    assert task.metric == "inst_level_strict_acc"
    assert not task.measure.is_mean, "races and looks, which take plain means, must know"
    items = load_items(parse(spec), "quiz")["search"]
    words = [row.marks.document["ends"][0] for row in items.rows]
    assert [row.label for row in items.rows] == [[str(len(word))] for word in words]
    assert len(set(map(len, words))) > 1
    texts = ["a dog", *[""] * (len(words) - 2), "the cat"]
    outcome = GENERATION.outcome(
        task,
        Written(texts, score_texts(task, [row.marks for row in items.rows], texts)),
        items.rows,
    )
    follows = [[letter in text for letter in word] for word, text in zip(words, texts, strict=True)]
    assert outcome.scores == pytest.approx([np.mean(one) for one in follows])
    right, sizes = np.array([[sum(one), len(one)] for one in follows]).T
    empty = outcome.predictions, items.labels
    assert task.measure.of(outcome.scores, *empty) == right.sum() / sizes.sum()
    weights = np.random.default_rng(0).integers(0, 3, (5, len(words)))
    found = task.measure.resample([outcome.scores], [empty[0]], items.labels, weights)
    assert found[:, 0] == pytest.approx(weights @ right / (weights @ sizes))
    monkeypatch.setattr(opened, "aggregation", lambda: {entry["metric"]: lambda lists: 0.7})
    with pytest.raises(ValueError, match="quiz.metric: inst_level_strict_acc must be the mean o"):
        load_items(parse(spec), "quiz")
    monkeypatch.setitem(entry, "aggregation", "mean")
    with pytest.raises(ValueError, match="quiz has inst_level_strict_acc"):
        parse(spec)


def test_members_of_groups_and_tags() -> None:
    def entry(kind: str, cfg: Any = None, *tags: str) -> Any:
        return SimpleNamespace(kind=SimpleNamespace(name=kind), cfg=cfg, tags=set(tags))

    index = {
        **{name: entry("TASK") for name in ("quiz", "sums", "birds")},
        "easy": entry("TAG", None, "sums", "quiz"),
        "all": entry("GROUP", {"group": "all", "task": ["easy", "some", "birds"], "metadata": {}}),
        "some": entry("GROUP", {"task": [{"group": "own", "task": ["birds"]}, {"task": "sums"}]}),
        "shots": entry("GROUP", {"task": [{"task": "quiz", "num_fewshot": 3}]}),
        "whole": entry("GROUP", {"task": ["quiz"], "num_fewshot": 5}),
    }
    assert members_of("t", "all", index) == ("quiz", "sums", "birds")
    for name in ("shots", "whole"):
        with pytest.raises(ValueError, match=f"t: .*but {name} sets num_fewshot of some; name the"):
            members_of("t", name, index)
    with pytest.raises(KeyError):
        members_of("t", "other", index)


def test_tasks_of_a_group_are_averaged_by_documents_or_by_tasks(
    spec: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"a": 10, "b": 40, "c": 12}
    opened = {
        name: Opened(test=rows_of("choices-by-likelihood", seed, size), train=[])
        for seed, (name, size) in enumerate(sizes.items())
    }
    examples = rows_of("choices-by-likelihood", 9, 9)
    for one in opened.values():
        one.dataset["train"] = examples
    for module in (found_tasks, harness):
        monkeypatch.setattr(module, "members", lambda *_: tuple(sizes))
    monkeypatch.setattr(harness, "open_task", lambda _, source: opened[source.harness])
    dataset = {"harness": "all", "allow_test": True}
    member = {_hash(row): name for name, one in opened.items() for row in one.dataset["test"]}
    assert len(member) == 62

    def counted(**fields: Any) -> list[list[str]]:
        spec["tasks"]["quiz"] = {"dataset": dataset, "max_length": 60} | fields
        task, tokenizer = parse(spec).tasks["quiz"], make_tokenizer("llama")
        documents = read_documents("t", task, {"search": None, "confirm": None}, tokenizer)[None]
        names = {row.key: row.member for row in documents}
        items = load_items(parse(spec), "quiz")
        return [[names[key] for key in items[split].keys] for split in SPLITS]

    micro = counted(search={"items": 31})
    assert [len(names) for names in micro] == [31, 31]
    assert sorted([*micro[0], *micro[1]]) == sorted(member.values())
    dataset["average"] = "macro"
    assert [Counter(names) for names in counted()] == [dict.fromkeys("abc", 5)] * 2
    search, confirm = counted(search={"items": 11}, confirm={"items": 6})
    assert Counter(search) == dict.fromkeys("abc", 3)
    assert Counter(confirm) == dict.fromkeys("abc", 2)
    assert all(sorted(search[place : place + 3]) == ["a", "b", "c"] for place in (0, 3, 6))
    for items, message in ((2, "items: at least one for each of 3"), (40, "split: .* a has not")):
        with pytest.raises(ValueError, match=f"search.{message}|quiz.{message}"):
            counted(search={"items": items})
    configs = {"a": MC, "b": WRITES, "c": MC}
    monkeypatch.setattr(found_tasks, "_entry", lambda _, one: (Path(), configs[one.harness]))
    with pytest.raises(ValueError, match="must be scored alike, but b is not as a is; name them"):
        parse(spec)
