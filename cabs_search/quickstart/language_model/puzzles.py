"""Puzzles for the language-model quickstart, made by reasoning-gym from seeds.

Experts are tuned on questions of one seed; the search and its confirmation read those of another,
without any question of the first. They are tasks of lm-evaluation-harness: a YAML file and a file
of documents each.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

PROMPT = "Question: {question}\nAnswer:"
CHOICES = 4
TRAIN_SEED, HELDOUT_SEED, EXAMPLE_SEED = 1, 1_000_001, 2_000_003
"""reasoning-gym draws a question from its number added to the seed."""


@dataclass(frozen=True, kw_only=True)
class Puzzle:
    """A kind of question whose answer is a whole number."""

    name: str
    generator: str
    """Its name in reasoning-gym."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, ...]
    """Differences that a wrong choice may have from the right one."""


PUZZLES = (
    Puzzle(
        name="sums",
        generator="chain_sum",
        settings={"min_terms": 2, "max_terms": 2, "max_digits": 2},
        steps=(-10, -3, -2, -1, 1, 2, 3, 10),
    ),
    Puzzle(
        name="multiples",
        generator="lcm",
        settings={"min_numbers": 2, "max_numbers": 2, "max_value": 30},
        steps=(-10, -3, -2, -1, 1, 2, 3, 10),
    ),
    Puzzle(name="relations", generator="aiw", steps=(-3, -2, -1, 1, 2, 3)),
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its choices, of which one is right."""

    question: str
    choices: list[str]
    answer: str

    @property
    def prompt(self) -> str:
        """The text before the answer."""
        return PROMPT.format(question=self.question)


def questions(puzzle: Puzzle, train: int, heldout: int) -> tuple[list[Question], list[Question]]:
    """Make different questions to tune on, and others to score.

    Args:
        puzzle: the kind of question.
        train: number of questions to tune on, at most.
        heldout: number of others, at most: repeated questions count once.

    """
    tuned_on = dict.fromkeys(_pairs(puzzle, train, TRAIN_SEED))
    others = dict.fromkeys(_pairs(puzzle, heldout, HELDOUT_SEED))
    return (
        [_question(puzzle, *pair) for pair in tuned_on],
        [_question(puzzle, *pair) for pair in others if pair not in tuned_on],
    )


def example(puzzle: Puzzle) -> Question:
    """Make a question to show, of a seed of its own."""
    ((question, answer),) = _pairs(puzzle, 1, EXAMPLE_SEED)
    return Question(question=question, choices=[], answer=answer)


def write(puzzle: Puzzle, rows: Sequence[Question], folder: Path) -> None:
    """Write a task of lm-evaluation-harness: ``NAME.yaml`` and its documents, ``NAME.jsonl``."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = folder / f"{puzzle.name}.jsonl"
    documents.write_text("".join(json.dumps(vars(row)) + "\n" for row in rows), encoding="utf-8")
    task = {
        "task": puzzle.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(documents)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT.replace("{question}", "{{question}}"),
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{choices.index(answer)}}",
        "metric_list": [{"metric": "acc"}],
    }
    text = yaml.safe_dump(task, sort_keys=False)
    (folder / f"{puzzle.name}.yaml").write_text(text, encoding="utf-8")


def _pairs(puzzle: Puzzle, count: int, seed: int) -> list[tuple[str, str]]:
    """Return questions with their answers."""
    import reasoning_gym

    made = reasoning_gym.create_dataset(
        puzzle.generator, size=count, seed=seed, **dict(puzzle.settings)
    )
    return [(entry["question"].strip(), str(entry["answer"])) for entry in made]


def _question(puzzle: Puzzle, question: str, answer: str) -> Question:
    """Add wrong choices, drawn by the question itself; no number is below 0 if the right is not."""
    draw = random.Random(question)  # noqa: S311
    right = int(answer)
    near = [right + step for step in puzzle.steps if right < 0 or right + step >= 0]
    numbers = sorted([right, *draw.sample(near, CHOICES - 1)])
    return Question(question=question, choices=list(map(str, numbers)), answer=answer)
