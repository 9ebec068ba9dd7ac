"""The command line: quick help, documented commands, one line with exit 2 for wrong input."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from cabs_search.cli.commands import _print_server_links
from cabs_search.cli.main import main
from cabs_search.cli.parser import parser
from cabs_search.merging.method import make_method
from cabs_search.merging.recipe import make_recipe
from tests.conftest import EXPERTS, make_base, make_expert, pico_values, write_spec

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "optuna", "mlflow", "transformers", "datasets", "numpy", "pydantic")


def commands() -> dict[str, argparse.ArgumentParser]:
    (found,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(found.choices)


def test_help_imports_nothing_heavy() -> None:
    code = f"""
import sys
from cabs_search.cli import main
try:
    main(["--help"])
finally:
    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: cabs-search" in found.stdout
    assert found.stderr.strip() == "[]"


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "docs" / "commands.md").read_text()
    for name, command in commands().items():
        assert f"`{name}" in text or f"cabs-search {name}" in text, f"{name} is in no page"
        for action in command._actions:
            for option in action.option_strings:
                if option not in ("-h", "--help"):
                    assert option in text, f"{name} {option} is in no page"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        status = main([str(a) for a in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def wrong(change: Callable[[dict[str, Any]], object]) -> Callable[[Path, Path], list[object]]:
    def arguments(pico: Path, tmp: Path) -> list[object]:
        values = pico_values(pico)
        change(values)
        return ["run", write_spec(tmp / "x.yaml", values), "--output", tmp / "out"]

    return arguments


def merge_with(*more: object) -> Callable[[Path, Path], list[object]]:
    def arguments(pico: Path, tmp: Path) -> list[object]:
        experts = [part for e in EXPERTS for part in ("--expert", f"{e}={pico / e}")]
        return ["merge", "--base", pico / "base", *experts, *more, "--to", tmp / "out"]

    return arguments


def recipe_of(tmp: Path, *experts: str) -> Path:
    recipe = make_recipe(make_method("cabs", experts), dict.fromkeys(experts, 1.0))
    (tmp / "recipe.json").write_text(json.dumps(recipe.as_dict()))
    return tmp / "recipe.json"


def other_shape(pico: Path, tmp: Path) -> list[object]:
    odd = make_expert(tmp / "odd", make_base(tmp / "other", hidden_size=32), 1, 2)
    return wrong(lambda v: v["experts"].update(mood=str(odd)))(pico, tmp)


def headless(pico: Path, tmp: Path) -> list[object]:
    return wrong(lambda v: v["experts"].update(mood=str(pico / "base")))(pico, tmp)


def half_headed(pico: Path, tmp: Path) -> list[object]:
    shutil.copytree(pico / "mood", tmp / "half")
    tensors = load_file(tmp / "half" / "model.safetensors")
    tensors["classifier.other"] = tensors.pop("classifier.weight")
    save_file(tensors, tmp / "half" / "model.safetensors")
    return ["plan", wrong(lambda v: v["experts"].update(mood=str(tmp / "half")))(pico, tmp)[1]]


def broken_config(pico: Path, tmp: Path) -> list[object]:
    shutil.copytree(pico / "mood", tmp / "another-name")
    (tmp / "another-name" / "tokenizer_config.json").write_text("{")
    (tmp / "another-name" / "tokenizer.json").write_text("{")
    return wrong(lambda v: v["experts"].update(mood=str(tmp / "another-name")))(pico, tmp)


def nan_in_base(pico: Path, tmp: Path) -> list[object]:
    shutil.copytree(pico / "base", tmp / "sick")
    tensors = load_file(tmp / "sick" / "model.safetensors")
    tensors["pooler.dense.bias"][3] = float("nan")
    save_file(tensors, tmp / "sick" / "model.safetensors")
    return wrong(lambda v: v.update(base=str(tmp / "sick")))(pico, tmp)


def torn_head(pico: Path, tmp: Path) -> list[object]:
    """Ask for three classes where the head has two."""
    shutil.copytree(pico / "mood", tmp / "torn")
    config = json.loads((tmp / "torn" / "config.json").read_text())
    config |= {"id2label": {str(i): str(i) for i in range(3)}, "label2id": {}}
    (tmp / "torn" / "config.json").write_text(json.dumps(config))
    return ["plan", wrong(lambda v: v["experts"].update(mood=str(tmp / "torn")))(pico, tmp)[1]]


def config_of_a_list(pico: Path, tmp: Path) -> list[object]:
    shutil.copytree(pico / "mood", tmp / "odd")
    (tmp / "odd" / "config.json").write_text("[]")
    return wrong(lambda v: v["experts"].update(mood=str(tmp / "odd")))(pico, tmp)


def lost_record(pico: Path, tmp: Path) -> list[object]:
    (tmp / "lost" / "outcomes").mkdir(parents=True)
    write_spec(tmp / "lost" / "spec.yaml", pico_values(pico))
    return ["report", tmp / "lost"]


def rename_to_base(values: dict[str, Any]) -> None:
    values["experts"]["base"] = values["experts"].pop("mood")
    values["tasks"]["mood"]["expert"] = "base"


WRONG: dict[str, tuple[Callable[[Path, Path], list[object]], str]] = {
    "no command": (lambda _p, _t: [], "COMMAND"),
    "unknown command": (lambda _p, _t: ["fly"], "'fly'"),
    "unknown option": (lambda _p, _t: ["run", "x", "--fast"], "--fast"),
    "missing spec": (lambda _p, t: ["run", t / "no.yaml"], "no.yaml: no such file"),
    "missing path": (
        wrong(lambda v: v.update(base="/no/where")),
        "x.yaml: base: /no/where: no such folder",
    ),
    "wrong field": (wrong(lambda v: v.update(lamda=1)), "x.yaml: lamda: no such field"),
    "order of names": (
        wrong(lambda v: v["space"].update(order=list(EXPERTS))),
        "x.yaml: space.order[0]: Input should be a valid tuple, but got 'mood'",
    ),
    "n:m of fractions": (
        wrong(lambda v: v["space"].update(nm=[[2, 8.9]])),
        "n:m must be two whole numbers such as 64:256",
    ),
    "n > m": (
        wrong(lambda v: v["space"].update(nm=["128:64"])),
        "space.nm[0]: n <= m must hold, but got 128:64",
    ),
    "unknown task in order": (
        wrong(lambda v: v["space"].update(order=[["mood", "animal", "cow"]])),
        "mood, animal, cow",
    ),
    "lambda low > high": (
        wrong(lambda v: v["space"].update({"lambda": {"low": 2, "high": 1}})),
        "low <= high must hold",
    ),
    "another shape": (
        other_shape,
        "experts.mood: an expert must have the base's architecture, but hidden_size is 32",
    ),
    "an expert named base": (
        wrong(rename_to_base),
        "x.yaml: experts.base: an expert must have another name",
    ),
    "NaN in the base": (nan_in_base, "every weight must be finite, but pooler.dense.bias is not"),
    "three classes, two weights": (torn_head, "experts.mood: cannot be loaded"),
    "a list for a config": (config_of_a_list, "config.json: must hold a JSON object, but got list"),
    "no record": (lost_record, "outcomes.sqlite: no such file"),
    "address of a client": (
        lambda p, t: [*wrong(lambda _: None)(p, t), "--address", "ray://127.0.0.1:1"],
        "--address ray://127.0.0.1:1: a driver must run on a machine of the cluster",
    ),
    "address without a port": (
        lambda p, t: [*wrong(lambda _: None)(p, t), "--address", "foo"],
        "--address: auto or HOST:PORT is needed, but got foo",
    ),
    "no head": (headless, "experts.mood: the expert that scores mood must have a head"),
    "part of a head": (
        half_headed,
        "experts.mood: a model that scores must be whole, but has no classifier.weight",
    ),
    "broken tokenizer": (broken_config, "experts.mood: "),
    "no GPU": (
        wrong(lambda v: v.update(device="cuda")),
        "device: cuda is asked for, but torch finds no GPU",
    ),
    "bad storage": (
        wrong(lambda v: v["search"].update(storage="foo://x")),
        "foo://x: the study cannot be opened",
    ),
    "output with ?": (
        lambda p, t: [*wrong(lambda _: None)(p, t)[:2], "--output", t / "a?b"],
        "must have no ? and no %",
    ),
    "merge path as name": (merge_with("--expert", "../evil=x"), "--expert: a name must be letters"),
    "port": (
        lambda _p, t: ["ui", t, "--port", "70000"],
        "a number from 1 to 65535 is needed, but got 70000",
    ),
    "too many items": (
        wrong(lambda v: v["tasks"]["mood"]["search"].update(items=999)),
        "tasks.mood.search.items",
    ),
    "trials 0": (lambda _p, _t: ["run", "quickstart", "--trials", "0"], "--trials"),
    "no study": (lambda _p, t: ["report", t], "holds no study"),
    "no study to export": (lambda _p, t: ["export", t, "--to", t / "out"], "holds no study"),
    "no runs": (lambda _p, t: ["ui", t], "holds no mlflow.db"),
    "merge n > m": (merge_with("--nm", "9:8"), "n <= m must hold, but got 9:8"),
    "merge no recipe": (merge_with("--recipe", "gone.json"), "gone.json: no such file"),
    "merge recipe of others": (
        lambda p, t: merge_with("--recipe", recipe_of(t, "mood", "other"))(p, t),
        "must be given (mood, other), but got mood, animal, pair",
    ),
    "merge recipe and setting": (
        lambda p, t: merge_with("--recipe", recipe_of(t, *EXPERTS), "--nm", "2:8")(p, t),
        "--recipe: it has every setting, so --nm must not be given",
    ),
    "merge nm": (merge_with("--nm", "half"), "such as 64:256, but got half"),
    "merge nm without n:m": (
        merge_with("--method", "task-arithmetic", "--nm", "2:8"),
        "--nm: task-arithmetic does not use it; it has no settings",
    ),
    "merge density with n:m": (
        merge_with("--density", "0.5"),
        "--density: cabs does not use it; it has --nm, --order, --overlap, --overlap-merge, --tail",
    ),
    "merge seed": (
        merge_with("--method", "dare", "--seed", "abc"),
        "a seed must be a whole number from 0, but got abc",
    ),
    "merge order": (merge_with("--order", "mood"), "order must name every expert once"),
    "merge method": (
        merge_with("--method", "magic"),
        "method must be one of task-arithmetic, magnitude,",
    ),
    "merge density": (
        merge_with("--method", "dare", "--density", "0"),
        "0 < density <= 1 must hold, but got 0",
    ),
    "merge overlap_merge": (
        merge_with("--overlap-merge", "mean"),
        "overlap_merge must be sum or ties, but got 'mean'",
    ),
    "merge wanda": (
        merge_with("--method", "ties-wanda"),
        "ties-wanda needs calibration items, which only a study has",
    ),
    "merge fisher": (
        merge_with("--method", "fisher"),
        "fisher needs calibration items, which only a study has",
    ),
    "no task to calibrate on": (
        wrong(lambda v: (v["space"].update(method="wanda"), v["tasks"].pop("pair"))),
        (
            "x.yaml: space.method: wanda takes calibration items from a task of each expert, but"
            " pair has none"
        ),
    ),
    "tensors in no group": (
        wrong(lambda v: v["space"]["lambda"].update(groups={"lower": r"layer\.0"})),
        (
            "space.lambda.groups: every merged tensor must be in a group of λ, but"
            " embeddings.LayerNorm.bias is in none"
        ),
    ),
    "a group of none": (
        wrong(lambda v: v["space"]["lambda"].update(groups={"all": ".", "lower": "layer"})),
        "space.lambda.groups.lower: a group must have tensors of its own, but got 'layer'",
    ),
    "order twice": (
        wrong(lambda v: v["space"].update(order=[list(EXPERTS)] * 2)),
        "x.yaml: space.order: each value must stand once, but got ('mood', 'animal', 'pair') twice",
    ),
    "metric of another kind": (
        wrong(lambda v: v["tasks"]["mood"].update(metric="pearsonr")),
        (
            "x.yaml: tasks.mood.metric: classification must have another metric, such as accuracy,"
            " but got pearsonr"
        ),
    ),
    "no column": (
        wrong(lambda v: v["tasks"]["mood"].update(label="nope")),
        "x.yaml: tasks.mood.label: no column nope; the data has text, label",
    ),
    "no output": (lambda _p, _t: ["run", "quickstart", "--output", ""], "a folder is needed"),
    "tracking address": (
        lambda _p, _t: ["run", "quickstart", "--tracking-uri", "foo://x"],
        "sqlite, postgresql",
    ),
    "cluster": (
        lambda _p, _t: ["stop", "raysubmit_1", "--address", "head:8265"],
        "http://HOST:PORT is needed, but got head:8265",
    ),
    "password for a cluster": (
        lambda _p, _t: [
            *("submit", "quickstart", "--address", "http://127.0.0.1:1", "--output", "/o"),
            *("--tracking-uri", "http://me:SECRET@host"),
        ],
        "--tracking-uri: must have no user and no password",
    ),
    "no news": (lambda _p, t: ["status", t], "no search has begun there"),
    "compare over nothing": (lambda _p, _t: ["compare", "quickstart"], "--over"),
    "picture": (
        lambda p, t: ["vectors", wrong(lambda _: None)(p, t)[1], "--picture", t / "v.gif"],
        "--picture: a .png, .svg or .pdf file is needed, but got",
    ),
    "vectors method": (
        lambda p, t: ["vectors", wrong(lambda _: None)(p, t)[1], "--method", "magic"],
        "method must be one of",
    ),
    "merge lambda name": (merge_with("--lambda", "cow=1"), "an expert must be named"),
    "merge lambda value": (merge_with("--lambda", "mood=much"), "a number is needed, but got much"),
    "merge lambda nan": (
        merge_with("--lambda", "mood=nan"),
        "-1e6 <= λ <= 1e6 must hold, but got mood=nan",
    ),
    "merge expert twice": (merge_with("--expert", "mood=x"), "mood is given twice"),
    "merge without a name": (merge_with("--expert", "path"), "NAME=VALUE is needed"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_ends_with_2_and_one_line(
    pico: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: Callable[[Path, Path], list[object]],
    message: str,
) -> None:
    given = arguments(pico, tmp_path)
    capsys.readouterr()
    status, out, err = run(capsys, *given)
    lines = [line for line in err.splitlines() if line.startswith("cabs-search")]
    assert status == 2, err
    assert out == ""
    assert len(lines) == 1
    assert message in lines[0]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists(), "nothing is half-written"


def test_a_folder_with_files_is_not_written_over(
    pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    status, _, err = run(capsys, *merge_with()(pico, tmp_path))
    assert status == 2
    assert "must be a new or an empty folder" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine"]


def test_plan_touches_no_worker_and_writes_nothing(
    pico: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path / "pico.yaml", pico_values(pico))
    status, out, _ = run(capsys, "plan", path, "--json")
    found = json.loads(out)
    assert status == 0
    assert found["candidates"] == 10
    assert found["space"] == 21**3 * 2 * 6
    assert (
        found["vectors"] == 2 * (3 + 6 + 6) + 3
    )  # prefixes of all orders, twice, and three whole vectors
    assert found["vectors_cached"] == 0
    assert found["spec"]["tasks"]["pair"]["text"] == ["first", "second"]
    assert found["items"] == 10 * 72 + 8 * 72
    assert not cache.exists()
    text = run(capsys, "plan", path)[1]
    assert "10 of 111,132 in the space" in text


def test_vectors_show_density_and_overlap(
    pico: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = pico_values(pico)
    values["space"] |= {"nm": ["2:8"], "order": [list(EXPERTS)]}
    path = write_spec(tmp_path / "pico.yaml", values)
    status, out, _ = run(capsys, "vectors", path, "--json")
    assert status == 0
    cabs, whole = json.loads(out)
    assert cabs["method"] == "cabs 2:8 mood>animal>pair"
    assert cabs["density"]["pooler.dense.weight"] == dict.fromkeys(EXPERTS, 0.25)
    assert cabs["density"]["embeddings.word_embeddings.weight"] == dict.fromkeys(EXPERTS, 0.0)
    for i, row in enumerate(cabs["overlap"]):
        assert [v for j, v in enumerate(row) if j != i] == pytest.approx([0.0, 0.0], abs=0.01)
        assert row[i] == 1.0
    assert all(v == pytest.approx(1.0) for row in whole["overlap"] for v in row)
    assert "overlap" in run(capsys, "vectors", path)[1]


def test_a_terminal_without_lambda_still_prints(pico: Path, tmp_path: Path) -> None:
    code = "import sys; from cabs_search.cli import main; sys.exit(main(['merge', '--help']))"
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert found.returncode == 0
    assert "--lambda" in found.stdout


def test_an_error_in_the_middle_loses_nothing(
    pico: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("something unforeseen")

    monkeypatch.setattr("cabs_search.cluster.driver.search", broken)
    path = write_spec(tmp_path / "pico.yaml", pico_values(pico))
    status, _, err = run(capsys, "run", path, "--output", tmp_path / "out")
    assert status == 2
    assert "something unforeseen" in err
    assert {"outcomes", "study.db", "spec.yaml"} <= {p.name for p in (tmp_path / "out").iterdir()}


def test_nothing_at_an_address_is_said_at_once(
    pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_spec(tmp_path / "pico.yaml", pico_values(pico))
    status, _, err = run(
        capsys, "run", path, "--output", tmp_path / "out", "--address", "127.0.0.1:1"
    )
    assert status == 1
    assert "no Ray cluster answers there" in err
    assert not (tmp_path / "out").exists()


def test_a_broken_pipe_is_no_error(pico: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m cabs_search.cli --help | head -1"
    found = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=True, env=os.environ
    )
    assert found.stderr == ""


def test_links_of_a_server_have_no_password(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "http://me:SECRET@127.0.0.1:1"
    _print_server_links(tmp_path, uri)
    assert capsys.readouterr().err == "MLflow at http://127.0.0.1:1 does not answer: ValueError\n"
    monkeypatch.setattr(
        "cabs_search.cli.commands._links",
        lambda _folder, asked, root: {"all runs": root} if asked == uri else {},
    )
    _print_server_links(tmp_path, uri)
    assert capsys.readouterr().out == "\nall runs  http://127.0.0.1:1\n"
