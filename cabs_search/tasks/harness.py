"""Documents of a task of lm-evaluation-harness, rendered into rows by its own code.

Prompts with their few-shot examples are built once, in the order of the documents and with the
harness's own seed, as its ``evaluate`` builds them; only then are documents chosen.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.base import Texts
from cabs_search.kinds.generation import GENERATION
from cabs_search.kinds.greedy_continuation import GREEDY_CONTINUATION
from cabs_search.kinds.language_modeling import LANGUAGE_MODELING
from cabs_search.kinds.right_choices import RIGHT_CHOICES
from cabs_search.metrics.scored import POOLED
from cabs_search.spec.harness import SIZED_BY_BYTES, describe, members, open_task, scorer
from cabs_search.spec.task import Task
from cabs_search.tasks.dataset import Row
from cabs_search.tasks.items import SplitName

FEWSHOT_SEED = 1234
"""Seed of few-shot examples in the harness."""
Document = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Reference:
    """Facts that the harness scores a generated text by."""

    task: str
    """Name of the harness's task that the document belongs to."""
    document: Document
    has_several: bool
    """True if a list of right answers counts as several ones; the task's first document tells."""


def read_documents(
    where: str, task: Task, names: Mapping[SplitName, str | None], tokenizer: Any
) -> dict[str | None, list[Row]]:
    """Render a task's documents, of a group those of all its tasks.

    Equal ones count once, few-shot examples of others not at all.

    Args:
        where: start of errors, such as ``tasks.arc``.
        task: a task of the harness.
        names: the data's own split that each phase reads; None: the one that the harness evaluates
            on.
        tokenizer: has the chat template.

    Returns:
        Rows by name of the split; one list for two names of one split.

    Raises:
        UnreachableError: lm-evaluation-harness is not installed, or the hub does not give the data.
        ValueError: the task has another kind, or no such metric or split, or documents that cannot
            be scored here, or the test split would be searched on.

    """
    _check_fits(where, task)
    tasks = {
        name: replace(task, dataset=replace(task.dataset, harness=name))
        for name in members(where, task.dataset)
    }
    read = {name: _read_one(where, one, names, tokenizer) for name, one in tasks.items()}
    if len(read) == 1:
        return next(iter(read.values()))
    merged: dict[tuple[int, ...], list[Row]] = {}
    found = {}
    for name in names.values():
        parts = {member: of_member[name] for member, of_member in read.items()}
        by_key: dict[str, Row] = {}
        for member, rows in parts.items():
            for row in rows:
                by_key.setdefault(row.key, replace(row, member=member))
        # Two names of one split have one list, as of a single task.
        same = tuple(map(id, parts.values()))
        found[name] = merged.setdefault(same, list(by_key.values()))
    return found


def _read_one(
    where: str, task: Task, names: Mapping[SplitName, str | None], tokenizer: Any
) -> dict[str | None, list[Row]]:
    """Do what ``read_documents`` does, for one task."""
    opened = open_task(where, task.dataset)
    config = opened.config
    own, test = config.test_split or config.validation_split, config.test_split
    splits = {name: name or own for name in names.values()}
    if splits[names["search"]] == test and not task.dataset.allow_test:
        others = ", ".join(name for name in opened.dataset if name != test)
        raise ValueError(
            f"{where}.search.split: must be another than {test}, the test split of"
            f" {task.dataset.harness} ({others or 'it has no other'}), unless dataset.allow_test is"
            " true"
        )
    drawn = _note_examples(opened)
    rows: dict[str, dict[str, Row]] = {}
    for split in dict.fromkeys(splits.values()):
        if split not in opened.dataset:
            raise ValueError(
                f"{where}.split: must be one of {', '.join(opened.dataset)}, but got {split}"
            )
        # Few-shots are drawn in another way from the test split; its own must stay what it is.
        opened.set_config("test_split", test if split == own else split)
        rows[split] = _rows(where, task, opened, tokenizer)
    if task.kind == GENERATION:
        for of_split in rows.values():
            _check_scores(where, task, next(iter(of_split.values())))
    kept = {split: _without_examples(where, found, drawn) for split, found in rows.items()}
    return {name: kept[split] for name, split in splits.items()}


def _check_fits(where: str, task: Task) -> None:
    """Raise ValueError unless the task has the kind and a metric of the harness's."""
    found = describe(where, task.dataset)
    if task.kind != found.kind:
        raise ValueError(f"{where}.kind: must be {found.kind}, but got {task.kind}")
    if task.metric not in found.metrics:
        raise ValueError(
            f"{where}.metric: must be {' or '.join(found.metrics)}, but got {task.metric}"
        )
    if task.dataset.average == "macro" and not task.measure.is_mean:
        raise ValueError(
            f"{where}.dataset.average: macro needs a metric that is a mean over documents, but"
            f" {task.metric} is none"
        )


def _rows(where: str, task: Task, opened: Any, tokenizer: Any) -> dict[str, Row]:
    """Return the rows of the split that the harness evaluates on, by hash of the document."""
    opened.set_fewshot_seed(FEWSHOT_SEED)
    chat = {}
    if task.dataset.chat_template:
        chat = {
            "apply_chat_template": True,
            "fewshot_as_multiturn": True,
            "chat_template": _chat_template(where, tokenizer),
        }
    try:
        with redirect_stderr(io.StringIO()):  # it draws a bar for each task
            opened.build_all_requests(limit=None, rank=0, world_size=1, **chat)
    except Exception as error:
        raise ValueError(
            f"{where}.dataset: requests cannot be built: {first_line(error)}"
        ) from error
    rows: dict[str, Row] = {}
    keys = set()
    for _, instances in itertools.groupby(opened.instances, key=lambda one: one.doc_id):
        requests = list(instances)
        document = requests[0].doc
        row = row_of(where, task, opened, document, [one.arguments for one in requests])
        if row.key not in keys:
            keys.add(row.key)
            rows.setdefault(_hash(document), row)
    return rows


def row_of(
    where: str, task: Task, opened: Any, document: Document, arguments: list[tuple[Any, ...]]
) -> Row:
    """Return a document as a row, whose own texts have no few-shot examples.

    Args:
        where: start of errors.
        task: the task.
        opened: the harness's own object of it.
        document: the document.
        arguments: those of its requests: contexts and continuations, or a text.

    Raises:
        ValueError: the document cannot be scored here.

    """
    if task.group and task.group not in document:
        raise ValueError(f"{where}.group: no column {task.group}; a document has {list(document)}")
    if task.kind == GENERATION:
        texts: Texts = (opened.doc_to_text(document),)
        member = str(task.dataset.harness)
        reference = Reference(member, dict(document), bool(opened.multiple_target))
        asked = ((arguments[0][0], ""),)
        target = _target(opened, document)
        if task.metric in POOLED:  # what an item counts for
            target = (str(len(_parts(where, task, opened, document))),)
        row = Row(texts, target, requests=asked, reference=reference)
    elif task.kind == LANGUAGE_MODELING:
        texts = (arguments[0][0],)
        row = Row(texts, _bytes(where, opened, document))
    elif task.kind == GREEDY_CONTINUATION:
        texts = (opened.doc_to_text(document), arguments[0][1])
        row = Row(texts, 1, requests=(arguments[0],))
    else:
        choices = opened.doc_to_choice(document)
        # With several inputs, as in Winogrande, the choices are in the contexts.
        first, second = opened.doc_to_text(document), opened.doc_to_target(document)
        question, right = (second, first) if opened.multiple_input else (first, second)
        requests = tuple(arguments[: len(choices)])  # more are for metrics that are not computed
        if task.kind == RIGHT_CHOICES:
            label: Any = _flags(where, opened, document, len(choices))
        else:
            label = _place(where, choices, right)
        texts = (question, *choices)
        row = Row(texts, label, requests=requests)
    if not all(isinstance(text, str) for text in (*row.texts, *sum(row.requests, ()))):
        raise ValueError(f"{where}.dataset: every text must be a string, but one has {row.texts}")
    group = digest(row.text if task.group is None else str(document[task.group]))
    return replace(row, group=group)


def _parts(where: str, task: Task, opened: Any, document: Document) -> Sequence[Any]:
    """Return the scores of the parts of a document, here of an empty text.

    Raises:
        ValueError: it has no parts, or the metric is not the mean over those of all documents.

    """
    found = opened.process_results(document, [""]).get(task.metric)
    mean = opened.aggregation()[task.metric]([[True, False, False], [True]])
    if not isinstance(found, list) or mean != 0.5:
        raise ValueError(
            f"{where}.metric: {task.metric} must be the mean over parts of documents, but one has"
            f" {found!r}"
        )
    return found


def _target(opened: Any, document: Document) -> tuple[str, ...]:
    """Return a document's right answers, for the record; the harness itself scores by them."""
    target = opened.doc_to_target(document)
    if opened.config.doc_to_choice is not None and isinstance(target, int):
        target = opened.doc_to_choice(document)[target]
    return tuple(map(str, target)) if isinstance(target, (list, tuple)) else (str(target),)


def score_texts(
    task: Task, references: Sequence[Reference | None], texts: Sequence[str]
) -> list[float]:
    """Return the harness's scores of generated texts, by the task's filter and metric.

    The task is opened once a process, without its data.

    Args:
        task: a task of the harness that is scored by generated texts.
        references: by which the texts are scored; a text without one gets 0.
        texts: one for each reference.

    Raises:
        UnreachableError: lm-evaluation-harness is not installed.
        ValueError: the score of a text is no number.

    """
    return [
        0.0 if reference is None else _score(task, reference, text)
        for reference, text in zip(references, texts, strict=True)
    ]


def _check_scores(where: str, task: Task, row: Row) -> None:
    """Raise ValueError unless the harness can score a text."""
    try:
        score_texts(task, [row.reference], [""])
    except Exception as error:
        raise ValueError(f"{where}.metric: a text cannot be scored: {first_line(error)}") from error


def _score(task: Task, reference: Reference, text: str) -> float:
    document, name = reference.document, reference.task
    opened = scorer(name, replace(task.dataset, harness=name), document)
    opened.multiple_target = reference.has_several
    # A new request for every text: the harness's own keep the first answer that they got.
    request = SimpleNamespace(resps=[text], doc=document, filtered_resps={})
    filters = {one.name: one for one in opened._filters}
    chosen = filters[task.dataset.filter or next(iter(filters))]
    chosen.apply([request])
    score = opened.process_results(document, list(request.filtered_resps.values())).get(task.metric)
    if task.metric in POOLED and isinstance(score, list):
        score = sum(map(float, score)) / max(1, len(score))
    if not isinstance(score, (bool, int, float, np.number)):
        raise ValueError(f"{task.metric} must be one number a document, but {name} gives {score!r}")
    return float(score)


def _place(where: str, choices: list[str], right: Any) -> int:
    """Return the right choice's place from its place or its text, as the harness takes it."""
    place = choices.index(right) if isinstance(right, str) and right in choices else right
    is_number = isinstance(place, (int, float)) and place == int(place)
    if not is_number or not 0 <= place < len(choices):
        raise ValueError(
            f"{where}.dataset: one choice of {len(choices)} must be right, but a document has"
            f" {right!r}"
        )
    return int(place)


def _flags(where: str, opened: Any, document: Document, count: int) -> tuple[int, ...]:
    """Ask the harness which choices are right: 1, else 0.

    Each choice in turn gets all of the likelihood. Then the choices get some each: the score must
    be the right ones' share.
    """

    def score(logs: Iterable[float]) -> float:
        return float(opened.process_results(document, [(log, False) for log in logs])["acc"])

    places = range(count)
    flags = tuple(round(score(-1e9 * (other != one) for other in places)) for one in places)
    shares = np.exp(-np.arange(count, dtype=float))
    share = float(shares @ np.array(flags) / shares.sum())
    if 1 not in flags or not math.isclose(score(-float(i) for i in places), share, rel_tol=1e-9):
        raise ValueError(
            f"{where}.dataset: the score must be the share of the right choices, but it is not in"
            f" {_shown(document)}"
        )
    return flags


def _bytes(where: str, opened: Any, document: Document) -> float:
    """Ask the harness how many bytes the likelihood of a document is divided by."""
    found = opened.process_results(document, (-1.0,))
    log, size = next((found[name] for name in SIZED_BY_BYTES if name in found), (0.0, 0))
    if log != -1.0 or size <= 0:
        raise ValueError(f"{where}.dataset: no bytes can be counted in {_shown(document)}")
    return float(size)


def _shown(document: Document) -> str:
    return repr(dict(document))[:80]


def _hash(document: Document) -> str:
    return digest(json.dumps(document, sort_keys=True, default=str))


def _note_examples(opened: Any) -> set[str]:
    """Return a set that receives the hash of every document that serves as an example."""
    drawn: set[str] = set()
    sampler = getattr(opened, "sampler", None)
    if sampler is not None:
        sample = sampler.sample

        def noted(*args: Any, **kwargs: Any) -> Any:
            found = sample(*args, **kwargs)
            drawn.update(map(_hash, found))
            return found

        sampler.sample = noted
    return drawn


def _without_examples(where: str, rows: Mapping[str, Row], drawn: set[str]) -> list[Row]:
    """Leave out documents that are few-shot examples of others, with a warning."""
    kept = [row for key, row in rows.items() if key not in drawn]
    if left_out := len(rows) - len(kept):
        warnings.warn(
            f"{where}: {left_out} of {len(rows)} documents are left out: they are few-shot examples"
            " of others",
            stacklevel=4,
        )
    return kept


def _chat_template(where: str, tokenizer: Any) -> Callable[..., str]:
    """Return a function that renders a chat as the harness does.

    Raises:
        ValueError: the tokenizer has no template.

    """
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise ValueError(f"{where}.dataset.chat_template: the base's tokenizer has none")

    def render(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        ends = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **ends))
        except TemplateError:  # many templates know no system message
            others = [message for message in messages if message["role"] != "system"]
            return str(tokenizer.apply_chat_template(others, tokenize=False, **ends))

    return render
