"""The language-model quickstart: puzzles, adapters of a toy base, and the whole command."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from cabs_search.cli.main import main
from cabs_search.merging.family import Family
from cabs_search.quickstart.language_model import experts, puzzles
from cabs_search.quickstart.language_model.answers import answers
from cabs_search.quickstart.language_model.puzzles import PUZZLES, Question
from tests.support.standins import make_base

HAS_PACKAGES = all(find_spec(name) for name in experts.NEEDED)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw pairs without reasoning-gym: a third of the held-out ones stand in both seeds."""

    def pairs(_: object, count: int, seed: int) -> list[tuple[str, str]]:
        start = 0 if seed == puzzles.TRAIN_SEED else 2 * count // 3
        return [(f"{i} + 0 =", str(i)) for i in range(start, start + count)] * 2

    monkeypatch.setattr(puzzles, "_pairs", pairs)


@pytest.mark.usefixtures("drawn")
def test_held_out_questions_are_new_and_have_four_choices() -> None:
    train, heldout = puzzles.questions(PUZZLES[0], 30, 30)
    assert len(train) == 30
    assert len(heldout) == 20
    assert not {row.question for row in train} & {row.question for row in heldout}
    for row in (*train, *heldout):
        assert len(set(row.choices)) == puzzles.CHOICES
        assert row.answer in row.choices
        assert all(int(choice) >= 0 for choice in row.choices)
    assert len({row.choices.index(row.answer) for row in train}) > 1, "the place would tell"


@pytest.mark.usefixtures("drawn")
def test_a_task_names_its_documents(tmp_path: Path) -> None:
    train, _ = puzzles.questions(PUZZLES[0], 3, 3)
    puzzles.write(PUZZLES[0], train, tmp_path)
    task = yaml.safe_load((tmp_path / "sums.yaml").read_text())
    (file,) = task["dataset_kwargs"]["data_files"].values()
    documents = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert documents == [vars(row) for row in train]
    assert task["doc_to_text"].replace("{{question}}", train[0].question) == train[0].prompt


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"), "llama")


def test_targets_are_the_answers_alone(base: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    rows = [
        Question(question="the cat", choices=[], answer="good"),
        Question(question="the dog sits in a house", choices=[], answer="bad bird"),
    ]
    inputs, targets = experts.encode(tokenizer, rows)
    for row, tokens, target in zip(rows, inputs["input_ids"], targets, strict=True):
        own = tokenizer(f"{row.prompt} {row.answer}\n")["input_ids"]
        assert tokens[-len(own) :].tolist() == own
        wanted = own[len(tokenizer(row.prompt)["input_ids"]) :]
        assert target[target != -100].tolist() == wanted
        assert target[-len(wanted) :].tolist() == wanted


def test_adapters_learn_and_answer(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each learns one answer; their sum at λ of 0 is the base; lower layers stay."""
    monkeypatch.setattr(experts, "FIRST_LAYER", 1)
    monkeypatch.setattr(experts, "RATE", 2e-2)
    folders = {}
    draw = random.Random(0)
    for name, answer in (("cats", "good"), ("dogs", "bad")):
        rows = [
            Question(question=f"the {draw.choice(('cat', 'dog'))}", choices=[], answer=answer)
            for _ in range(960)
        ]
        folders[name] = tmp_path / name
        done: list[int] = []
        experts.train(rows, base, folders[name], 0, done.append)
        assert sum(done) == len(rows)
    family = Family.open(base, folders)
    moved = {name for name in family.alignment.shared if _is_moved(family, name)}
    assert moved
    assert all(".layers.1." in name for name in moved)
    said = answers(base, list(folders.values()), base, ["Question: the cat\nAnswer:"])
    assert said["cats"] == ["good"]
    assert said["dogs"] == ["bad"]
    assert said["merged"] == said["base"]


def _is_moved(family: Family, name: str) -> bool:
    return not torch.equal(family.base.read(name), family.experts["cats"].read(name))


def test_what_must_be_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experts, "find_spec", lambda name: None if "gym" in name else object())
    assert main(["quickstart", "--language-model"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "reasoning_gym" in line
    assert "pip install" in line


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PACKAGES, reason="make quickstart-language-model installs packages")
def test_the_command_ends_with_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(experts, "TRAINED_ON", 32)
    folder = tmp_path / "study"
    assert main(["quickstart", "--language-model", "--items", "60", "--output", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "expert sums" in out
    for row in ("right", "base", "sums", "multiples", "relations", "merged"):
        assert any(line.startswith(row) for line in out.splitlines())
