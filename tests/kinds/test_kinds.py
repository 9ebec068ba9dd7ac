"""Kinds of task against naive references, and one-line errors for bad fields and rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.special import softmax
from scipy.stats import entropy

from cabs_search.kinds import question_answering as answering
from cabs_search.kinds.classes import class_entropies
from cabs_search.kinds.token_classification import Words
from cabs_search.metrics.squad import ANSWER_EXACT_MATCH, ANSWER_F1
from cabs_search.scoring.batches import collate
from cabs_search.scoring.forward import evaluate
from cabs_search.scoring.likelihoods import log_likelihoods
from cabs_search.spec.load import parse
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Items
from cabs_search.tasks.load import check_metric, load_items
from tests.conftest import pico_values
from tests.support.standins import (
    CAUSAL_KINDS,
    HEAD_KINDS,
    MAX_LENGTH,
    as_items,
    auto_class,
    make_base,
    make_expert,
    one_thread,
    rows_of,
    task_of,
    write_data,
)

CPU = torch.device("cpu")
ROWS = 40


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Any:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that trains an expert once: model, config and tokenizer."""
    root, made = tmp_path_factory.mktemp("standins"), dict[tuple[str, str], Any]()

    def give(architecture: str, kind: str) -> Any:
        base = root / architecture / "base"
        if not base.exists():
            make_base(base, architecture)
        if (architecture, kind) not in made:
            folder = make_expert(root / architecture / kind, base, architecture, kind, 1)
            model = auto_class(kind).from_pretrained(folder).eval()
            made[architecture, kind] = (
                model,
                model.config,
                transformers.AutoTokenizer.from_pretrained(folder),
            )
        return made[architecture, kind]

    return give


def items_of(trained: Any, architecture: str, kind: str, **changes: Any) -> tuple[Any, Items]:
    model, config, tokenizer = trained(architecture, kind)
    return model, as_items(rows_of(kind, 7, ROWS), task_of(kind, **changes), config, tokenizer)


PAIRS = [
    (a, k) for a in ("roberta", "gpt2") for k in HEAD_KINDS if (a, k) != ("gpt2", "multiple-choice")
]
PAIRS += [("llama", kind) for kind in (*CAUSAL_KINDS, "generation")]
PAIRS += [
    ("bert", "classification"),
    ("deberta-v2", "question-answering"),
    ("modernbert", "multiple-choice"),
]


@pytest.mark.parametrize(("architecture", "kind"), PAIRS)
def test_a_batch_gives_what_one_by_one_gives(trained: Any, architecture: str, kind: str) -> None:
    model, items = items_of(trained, architecture, kind)
    assert len({row.longest for row in items.rows}) > 1, "some are padded"
    together = evaluate(model, items, np.arange(ROWS), CPU)
    alone = [evaluate(model, items, np.array([i]), CPU) for i in range(ROWS)]
    assert together.losses == pytest.approx(np.concatenate([o.losses for o in alone]), abs=1e-4)
    assert together.scores == pytest.approx(np.concatenate([o.scores for o in alone]), abs=1e-4)
    if items.task.kind.predicts is float:
        assert together.predictions == pytest.approx(
            np.concatenate([o.predictions for o in alone]), abs=1e-4
        )
    else:
        assert together.predictions.tolist() == [o.predictions[0] for o in alone]
    assert items.task.measure.compute(together.predictions, items.labels) > 0.5, (
        "training taught it something"
    )


@pytest.mark.parametrize("kind", [*HEAD_KINDS, *CAUSAL_KINDS])
def test_losses_are_those_of_outcomes_and_can_be_differentiated(trained: Any, kind: str) -> None:
    if kind in CAUSAL_KINDS:
        model, items = items_of(trained, "llama", kind)
        greedy = items.task.kind.reads_greedy
        output = logits = log_likelihoods(model, items, np.arange(ROWS), CPU, greedy=greedy)
        half = output.bfloat16()
    else:
        model, items = items_of(trained, "roberta", kind)
        output = model(**collate(items, np.arange(ROWS)))
        logits = next(iter(output.values()))
        half = type(output)({name: value.bfloat16() for name, value in output.items()})
    for given in (output, half):
        losses = items.task.kind.losses(items.task, given, items.rows)
        reported = items.task.kind.outcome(items.task, given, items.rows).losses
        assert losses.dtype == torch.float32
        assert np.array_equal(losses.detach().numpy(), reported)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.any()


@pytest.mark.parametrize("kind", [k for k in HEAD_KINDS if k != "question-answering"])
def test_losses_and_predictions_are_the_librarys_own(trained: Any, kind: str) -> None:
    """Compare row by row, without padding, with the loss that transformers computes."""
    model, config, tokenizer = trained("roberta", kind)
    items = as_items(rows_of(kind, 7, 8), task_of(kind), config, tokenizer)
    found = evaluate(model, items, np.arange(8), CPU)
    for i, row in enumerate(items.rows):
        inputs = (
            {"input_ids": torch.tensor([s["input_ids"] for s in row.sequences])}
            if len(row.sequences) == 1
            else {}
        )
        if kind == "multiple-choice":
            inputs = {
                k: v[None]
                for k, v in tokenizer.pad(list(row.sequences), return_tensors="pt").items()
            }
        labels = torch.tensor([row.label]) if kind != "token-classification" else None
        if isinstance(row.marks, Words):
            labels = torch.full((1, row.longest), -100)
            labels[0, list(row.marks.places)] = torch.tensor(row.marks.labels)
        with torch.inference_mode():
            output = model(**inputs, labels=labels)
        assert found.losses[i] == pytest.approx(float(output.loss), abs=1e-4)
        match kind:
            case "regression":
                assert found.predictions[i] == pytest.approx(float(output.logits), abs=1e-5)
                assert found.scores[i] == pytest.approx(
                    -((float(output.logits) - row.label) ** 2), abs=1e-4
                )
            case "classification" | "multiple-choice":
                assert found.predictions[i] == int(output.logits.argmax())
                assert found.scores[i] == (found.predictions[i] == row.label)
            case _:
                share = np.mean(
                    [p == t for p, t in zip(found.predictions[i], row.label, strict=True)]
                )
                assert found.scores[i] == pytest.approx(share)


ANSWERS = [  # found, accepted, exact match, F1; by hand
    ("The Cat!", ["cat"], 1.0, 1.0),
    ("a cat sat", ["the cat"], 0.0, 2 / 3),  # "cat sat" against "cat": 1 of 2 and 1 of 1
    ("cat cat dog", ["cat dog"], 0.0, 0.8),  # 2 of 3 and 2 of 2
    ("U.S.A.", ["usa"], 1.0, 1.0),
    ("well-known  man", ["wellknown man"], 1.0, 1.0),
    ("theatre", ["atre"], 0.0, 0.0),  # an article is a whole word
    ("dog", ["cat", "the dog", "dog house"], 1.0, 1.0),
    ("in 1990", ["May 1990", "1990 in spring"], 0.0, 0.8),
    ("", ["cat"], 0.0, 0.0),
    ("the", ["a"], 1.0, 0.0),  # as SQuAD 1.1 has it
]


@pytest.mark.parametrize(("found", "accepted", "exact", "f1"), ANSWERS)
def test_answers_are_scored_as_in_squad(
    found: str, accepted: list[str], exact: float, f1: float
) -> None:
    assert ANSWER_EXACT_MATCH.score(found, accepted) == exact
    assert ANSWER_F1.score(found, accepted) == pytest.approx(f1)


def test_the_metric_of_answers_is_the_mean_of_the_items() -> None:
    for name, place in (("exact_match", 2), ("f1", 3)):
        task = task_of("question-answering", metric=name)
        predictions, labels = (
            task.kind.values([a[0] for a in ANSWERS]),
            task.kind.values([a[1] for a in ANSWERS]),
        )
        assert task.measure.compute(predictions, labels) == pytest.approx(
            np.mean([a[place] for a in ANSWERS])
        )
        assert task.measure.is_mean


def naive_best(passage: answering.Passage, starts: Any, ends: Any) -> str:
    found = []
    for window, start, end in zip(passage.windows, starts, ends, strict=True):
        for i, (low, _) in enumerate(window.spans):
            for j, (_, high) in enumerate(window.spans):
                if i <= j < i + answering.MAX_ANSWER_TOKENS:
                    score = float(start[window.first + i] + end[window.first + j])
                    found.append((score, passage.context[low:high].strip()))
    return max(found)[1]


@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "bert"])
def test_the_best_span_over_all_windows(trained: Any, architecture: str) -> None:
    _, items = items_of(trained, architecture, "question-answering", max_length=44, stride=20)
    draw = torch.Generator().manual_seed(0)
    for row in items.rows:
        assert isinstance(row.marks, answering.Passage)
        logits = [
            [torch.randn(len(s["input_ids"]), generator=draw) for s in row.sequences]
            for _ in range(2)
        ]
        assert answering.best_span(row.marks, *logits) == naive_best(row.marks, *logits)
    assert max(len(row.sequences) for row in items.rows) > 1


@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "bert"])
def test_targets_cover_the_answer_and_windows_the_context(trained: Any, architecture: str) -> None:
    _, items = items_of(trained, architecture, "question-answering")
    held = 0
    for row, raw in zip(items.rows, rows_of("question-answering", 7, ROWS), strict=True):
        assert isinstance(row.marks, answering.Passage)
        assert row.label == raw["answers"]["text"]
        assert all(len(s["input_ids"]) <= MAX_LENGTH for s in row.sequences)
        seen = {
            place
            for window in row.marks.windows
            for low, high in window.spans
            for place in range(low, high)
        }
        assert {i for i, c in enumerate(raw["context"]) if c != " "} <= seen
        for window in row.marks.windows:
            if window.target is not None and window.target[0] >= window.first > 0:
                first, last = (window.spans[place - window.first] for place in window.target)
                assert raw["context"][first[0] : last[1]].strip() == row.label[0]
                held += 1
    assert held >= ROWS


def test_windows_of_a_long_context_give_the_answer_of_one_window(trained: Any) -> None:
    """Logits depend on the place in the context; outside of it they are high and must not count."""
    _, config, tokenizer = trained("roberta", "question-answering")
    rows = rows_of("question-answering", 7, ROWS)
    tables = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    one = as_items(rows, task_of("question-answering", max_length=500), config, tokenizer)
    many = as_items(
        rows, task_of("question-answering", max_length=70, stride=40), config, tokenizer
    )
    assert all(len(row.sequences) == 1 for row in one.rows)
    assert any(len(row.sequences) > 1 for row in many.rows)
    for whole, cut in zip(one.rows, many.rows, strict=True):
        found = []
        for row in (whole, cut):
            assert isinstance(row.marks, answering.Passage)
            logits = [
                [torch.full((len(s["input_ids"]),), 9.0) for s in row.sequences] for _ in tables
            ]
            for table, filled in zip(tables, logits, strict=True):
                for window, values in zip(row.marks.windows, filled, strict=True):
                    for i, (low, _) in enumerate(window.spans):
                        values[window.first + i] = table[low]
            found.append(answering.best_span(row.marks, *logits))
        assert found[0] == found[1]


def test_the_loss_of_an_answer(trained: Any) -> None:
    """The windows that hold the answer count; if none does, all, at the CLS token."""
    _, _, tokenizer = trained("bert", "question-answering")
    context = "the cat sits near doctor smith and then the dog walks in"
    answer = ("doctor smith", context.index("doctor"))
    _, whole = answering.cut_windows(tokenizer, "who", context, answer, 40, 4)
    starts, ends = torch.randn(1, 16), torch.randn(1, 16)
    (window,) = whole.windows
    assert window.target == (3 + 4, 3 + 5), "behind [CLS] who [SEP] and four words"
    logs = starts[0].log_softmax(0)[7] + ends[0].log_softmax(0)[8]
    (loss,) = answering.span_losses(whole, list(starts), list(ends))
    assert float(loss) == pytest.approx(-float(logs) / 2)
    encoded, torn = answering.cut_windows(
        tokenizer, "who", context, answer, 5, 0
    )  # one word a window: it stands in none
    assert len(encoded["input_ids"]) == len(torn.windows) == len(context.split())
    assert {window.target for window in torn.windows} == {(0, 0)}
    _, part = answering.cut_windows(tokenizer, "who", context, answer, 8, 2)
    assert [window.target is not None for window in part.windows].count(True) == 2
    with pytest.raises(
        ValueError, match=r"room for a question .* but got \(room=4, stride=4\) for 'who'"
    ):
        answering.cut_windows(tokenizer, "who", context, answer, 8, 4)


@pytest.mark.parametrize("architecture", ["roberta", "gpt2", "bert"])
def test_words_count_at_their_first_token(trained: Any, architecture: str) -> None:
    _, config, tokenizer = trained(architecture, "token-classification")
    if architecture != "bert":
        tokenizer = type(tokenizer).from_pretrained(config._name_or_path, add_prefix_space=True)
    task = task_of("token-classification", max_length=30)
    rows = rows_of("token-classification", 7, ROWS)
    rows[0] = {"tokens": ["gloomy"] * 40, "ner_tags": [1] * 40}
    specials = {"roberta": 2, "gpt2": 0, "bert": 2}[architecture]
    for row, item in zip(rows, as_items(rows, task, config, tokenizer).rows, strict=True):
        places, at = (
            [],
            1 if specials else 0,
        )  # by hand: each word by itself, behind the mark at the start
        for word in row["tokens"]:
            pieces = tokenizer([word], is_split_into_words=True, add_special_tokens=False)[
                "input_ids"
            ]
            if at < 30 - specials // 2:
                places.append(at)
            at += len(pieces)
        assert isinstance(item.marks, Words)
        assert item.marks.places == tuple(places)
        assert item.label == [config.id2label[c] for c in row["ner_tags"][: len(places)]]
    assert len(rows[0]["tokens"]) > len(as_items(rows[:1], task, config, tokenizer).rows[0].label)


def test_a_choice_may_be_called_by_place_number_or_letter() -> None:
    task = task_of("multiple-choice")
    texts = ("article", "question", "one", "two", "three")
    for label, place in ((2, 2), ("2", 2), ("C", 2), ("A", 0), (1.0, 1)):
        assert task.kind.label("t", task, None, texts, label) == place
    for wrong in (3, "D", "a", "", "CC", -1, None, 0.5):
        with pytest.raises(
            ValueError, match="t.label: a label must be a choice's place from 0 to 2, or its letter"
        ):
            task.kind.label("t", task, None, texts, wrong)


def test_choices_from_columns_and_from_a_list_are_the_same(trained: Any) -> None:
    _, config, tokenizer = trained("roberta", "multiple-choice")
    rows = rows_of("multiple-choice", 7, 4)
    apart = [row | {f"option{i}": text for i, text in enumerate(row["options"])} for row in rows]
    listed = as_items(rows, task_of("multiple-choice"), config, tokenizer)
    columns = as_items(
        apart,
        task_of("multiple-choice", choices=[f"option{i}" for i in range(4)]),
        config,
        tokenizer,
    )
    assert listed.rows == columns.rows
    ids = listed.rows[0].sequences[2]["input_ids"]
    pair = (rows[0]["article"], f"{rows[0]['question']} {rows[0]['options'][2]}")
    assert ids == tokenizer(*pair)["input_ids"]


def test_items_may_have_more_or_fewer_choices(trained: Any) -> None:
    model, config, tokenizer = trained("bert", "multiple-choice")
    rows = [
        row | {"options": row["options"][: 2 + i % 3], "answer": 0}
        for i, row in enumerate(rows_of("multiple-choice", 7, 9))
    ]
    items = as_items(rows, task_of("multiple-choice"), config, tokenizer)
    together = evaluate(model, items, np.arange(9), CPU)
    alone = [evaluate(model, items, np.array([i]), CPU) for i in range(9)]
    assert together.losses == pytest.approx([float(o.losses[0]) for o in alone], abs=1e-5)


def test_correlations_against_numpy() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=50)
    b = a + draw.normal(size=50)
    task = task_of("regression")
    assert task.metric == "pearsonr"
    assert task.measure.compute(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
    assert replace(task, metric="spearmanr").measure.compute(a, b) == pytest.approx(
        np.corrcoef(*ranks)[0, 1]
    )
    ties = np.round(a)
    from scipy.stats import spearmanr

    assert replace(task, metric="spearmanr").measure.compute(ties, b) == pytest.approx(
        spearmanr(ties, b).statistic
    )
    for constant in (np.zeros(50), np.full(50, 3.5)):
        assert task.measure.compute(constant, b) == task.measure.compute(a, constant) == 0.0
    assert not task.measure.is_mean


def test_metrics_of_words_are_over_all_words() -> None:
    from sklearn.metrics import f1_score

    task = task_of("token-classification")
    predictions = task.kind.values([["O", "B"], ["O"], ["B", "B", "O"]])
    labels = task.kind.values([["O", "O"], ["O"], ["B", "O", "O"]])
    assert task.measure.compute(predictions, labels) == pytest.approx(4 / 6)
    macro = replace(task, metric="f1", metric_arguments={"average": "macro"})
    assert macro.measure.compute(predictions, labels) == f1_score(
        list("OOOBOO"), list("OBOBBO"), average="macro"
    )
    same = task.kind.values([["O", "B"], ["B", "O"]])
    assert same.shape == (2,), "also where all have as many words"
    with pytest.raises(ValueError, match=r"t\.metric: f1 cannot be computed"):
        check_metric("t", replace(task, metric="f1"), ("O", "B-PER", "I-PER"))


def test_other_metrics_of_words_are_given_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        def compute(self, predictions: Any, references: Any, **arguments: Any) -> Any:
            assert references == [["O", "B-PER"]]
            return {"PER": {}, "overall_precision": 0.1, "overall_f1": 0.3, "arguments": arguments}

    monkeypatch.setattr("cabs_search.metrics.evaluated.load_module", lambda _: Module())
    task = task_of("token-classification", metric="seqeval", metric_arguments={"scheme": "IOB2"})
    labels = task.kind.values([["O", "B-PER"]])
    assert task.measure.compute(labels, labels) == 0.3


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "magic"}, "tasks.mood.kind: Input should be 'classification', 'regression'"),
    ({"kind": "magic", "choices": "ends"}, "tasks.mood.kind: Input should be 'classification'"),
    (
        {"kind": "multiple-choice"},
        "tasks.mood.choices: multiple-choice must have a column of lists, or a list of",
    ),
    (
        {"choices": "text"},
        "tasks.mood.choices: choices go with multiple-choice or choices-by-likelihood or"
        " right-choices, but got text with classification",
    ),
    (
        {"kind": "multiple-choice", "choices": ["a"]},
        "tasks.mood.choices: multiple-choice must have two columns at least, but got a",
    ),
    (
        {"kind": "question-answering"},
        "tasks.mood.text: question-answering must have [question, context], but got text",
    ),
    (
        {"kind": "token-classification", "text": ["a", "b"]},
        (
            "tasks.mood.text: token-classification must have one column of word lists, but got"
            " ['a', 'b']"
        ),
    ),
    (
        {"kind": "regression", "metric": "mse"},
        "tasks.mood.metric: more must be better, as a search maximizes it, but",
    ),
    (
        {"kind": "question-answering", "text": ["a", "b"], "metric": "accuracy"},
        "tasks.mood.metric: question-answering must have exact_match or f1, but got accuracy",
    ),
    (
        {"kind": "language-modeling", "metric": "bits_per_byte"},
        "tasks.mood.metric: more must be better, as a search maximizes it, but got bits_per_byte;"
        " language-modeling has byte_probability",
    ),
    (
        {"kind": "language-modeling", "expert": "mood"},
        "tasks.mood.expert: language-modeling is scored with the output layer that is merged",
    ),
    ({"expert": "base"}, "tasks.mood: a task must name its expert (mood, animal, pair), but got"),
    (
        {"kind": "language-modeling", "label": "mood"},
        "tasks.mood.label: language-modeling reads no label, but got mood",
    ),
    (
        {"kind": "language-modeling", "text": ["a", "b"]},
        "tasks.mood.text: language-modeling must have one column of texts, but got ['a', 'b']",
    ),
    (
        {"stride": 12},
        "tasks.mood.stride: a stride goes with question-answering, but got 12 with classification",
    ),
    (
        {"kind": "question-answering", "text": ["a", "b"], "max_length": 128},
        "tasks.mood.stride: stride < max_length must hold, but got (stride=128, max_length=128)",
    ),
    (
        {"kind": "regression", "expert": "animal"},
        (
            "tasks.mood.kind: one expert's head must score tasks of one kind, but animal got"
            " classification in animal, regression in mood"
        ),
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_FIELDS, ids=[m[:60] for _, m in BAD_FIELDS])
def test_fields_that_do_not_go_together_meet_one_line(
    pico: Path, changes: dict[str, Any], message: str
) -> None:
    values = pico_values(pico)
    values["tasks"]["mood"] = {"dataset": {"csv": str(pico / "mood.csv")}, "text": "text"} | changes
    with pytest.raises(ValueError) as caught:  # the message is compared as text below
        parse(values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_defaults_go_with_the_kind_and_survive_writing() -> None:
    found = [task_of(kind).metric for kind in (*HEAD_KINDS, *CAUSAL_KINDS)]
    assert found[:5] == ["accuracy", "pearsonr", "accuracy", "f1", "accuracy"]
    assert found[5:] == ["acc", "acc", "acc", "byte_probability"]
    bare = Task(kind="question-answering", dataset={"csv": "x"}, text=["q", "c"])  # type: ignore[arg-type]
    assert (bare.max_length, bare.stride) == (384, 128)
    plain = Task(dataset={"csv": "x"}, text="t", metric=None, max_length=None)  # type: ignore[arg-type]
    assert (plain.metric, plain.max_length, plain.stride) == ("accuracy", 128, None)


SQUAD = {"question": "who", "context": "the cat and doctor smith"}
BAD_ROWS: list[tuple[str, dict[str, Any], str]] = [
    (
        "regression",
        {"sentence1": "a", "sentence2": "b", "score": "x"},
        "t.label: a label must be a number, at most",
    ),
    (
        "regression",
        {"sentence1": "a", "sentence2": "b", "score": 1e300},
        "t.label: a label must be a number, at most",
    ),
    *(
        (
            "question-answering",
            SQUAD | {"answers": {"text": [text], "answer_start": [start]}},
            "t.label: an answer must",
        )
        for text, start in (("a", None), ("a", "x"), ("a", 0.5), (5, 0), (None, 0), ("", 0))
    ),
    (
        "regression",
        {"sentence1": "a", "sentence2": None, "score": 1.0},
        "t.text: every text must be a string",
    ),
    (
        "multiple-choice",
        {"article": "a", "question": "b", "options": "cd", "answer": 0},
        "t.choices: two choices at",
    ),
    (
        "multiple-choice",
        {"article": "a", "question": "b", "options": ["c"], "answer": 0},
        "t.choices: two choices at",
    ),
    (
        "multiple-choice",
        {"article": "a", "question": "b", "options": ["c", 1], "answer": 0},
        "t.choices: every text must be a string, but column 'options' has 1",
    ),
    (
        "choices-by-likelihood",
        {"start": "a", "ends": ["1", "0"], "right": "0"},
        "t.label: '0' is the text of choice 1 and the place of choice 0",
    ),
    (
        "question-answering",
        SQUAD | {"answers": {"text": [], "answer_start": []}},
        "t.label: every question must have an",
    ),
    (
        "question-answering",
        SQUAD | {"answers": {"text": ["x"], "answer_start": [0]}},
        "t.label: an answer must stand in",
    ),
    (
        "question-answering",
        SQUAD | {"answers": {"text": ["x"], "answer_start": []}},
        "t.label: a label must be {text: ",
    ),
    (
        "question-answering",
        SQUAD | {"answers": "smith"},
        "t.label: a label must be {text: [...], answer_start: [...]}",
    ),
    (
        "token-classification",
        {"tokens": "a b", "ner_tags": [0]},
        "t.text: every text must be a list of words",
    ),
    (
        "token-classification",
        {"tokens": [], "ner_tags": []},
        "t.text: every text must be a list of words",
    ),
    (
        "token-classification",
        {"tokens": ["a", "b"], "ner_tags": [0]},
        "t.label: a label must list a class for each of",
    ),
    (
        "token-classification",
        {"tokens": ["a"], "ner_tags": ["X"]},
        "t.label: a label must be one of the head's classes",
    ),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD_ROWS)
def test_rows_that_a_kind_cannot_read_meet_one_line(
    kind: str, row: dict[str, Any], message: str
) -> None:
    task, config = task_of(kind), transformers.BertConfig(num_labels=2)
    with pytest.raises(ValueError) as caught:  # the message is compared as text below
        task.kind.label("t", task, config, task.kind.texts("t", task, row), row[task.label])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_head_of_another_kind_is_refused(
    pico: Path, tmp_path: Path, kind: str, suffix: str
) -> None:
    """Both file formats read the same; a classifier of two classes serves one kind only."""
    from tests.support.standins import fields_of

    path = write_data(tmp_path / f"rows.{suffix}", kind, 1, 40)
    source = {"json" if suffix == "jsonl" else suffix: str(path)}
    values = pico_values(pico)
    values["tasks"]["mood"] = {"dataset": source} | fields_of(kind) | {"max_length": 32}
    if kind == "classification":
        assert len(load_items(parse(values), "mood")["search"]) == 20
        return
    head = task_of(kind).kind.head
    needs = rf"tasks.mood.kind: {kind} needs a (model {head}|head of one output)"
    with pytest.raises(ValueError, match=needs):
        load_items(parse(values), "mood")


def test_entropies_leave_out_choices_that_an_item_has_not() -> None:
    logits = torch.tensor([[0.3, -1.0, 2.0], [0.3, -1.0, -torch.inf], [0.0, 200.0, 0.0]])
    logits.requires_grad_()
    found = class_entropies(logits)
    expected = [entropy(softmax([0.3, -1.0, 2.0])), entropy(softmax([0.3, -1.0])), 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)
    found.sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
