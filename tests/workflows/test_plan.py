"""Plans: heads are named, and parts that are at hand are checked when others cannot be had."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from cabs_search.checkpoints.origin import ORIGIN
from cabs_search.cli.main import main
from cabs_search.common.formats import show_bytes
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import make_method
from cabs_search.scoring.workbench import Workbench
from cabs_search.workflows.plan import plan
from tests.conftest import EXPERTS, make_base, make_expert, make_tokenizer, pico_values, write_spec
from tests.support import standins
from tests.support.adapters import adapt

HUB = "nobody/nothing"
REASON = f"{HUB}: no such folder, and the hub did not give it: "


@pytest.mark.parametrize("labels", [3, 2])
def test_a_plan_names_the_heads_that_are_never_merged(
    pico: Path, cache: Path, tmp_path: Path, labels: int
) -> None:
    """Also those of experts whose base is a classifier itself, whatever its labels."""
    base = make_expert(tmp_path / "tuned", pico / "base", 7, labels)
    (base / ORIGIN).write_text(json.dumps({"file": "tiny.gguf", "types": ["Q4_K"]}))
    values = pico_values(pico) | {"base": str(base)}
    values["space"]["method"] = ["cabs", "regmean", "fisher"]
    found = plan(write_spec(tmp_path / "x.yaml", values))
    assert found.needs is not None
    assert found.heads == dict.fromkeys(EXPERTS, ("classifier.bias", "classifier.weight"))
    heads = "classifier.bias, classifier.weight of mood, animal, pair: never merged"
    assert [line for line in found.as_text().splitlines() if line.startswith("heads ")] == [
        f"heads              {heads}"
    ]
    note = "the base was quantized: its weights are those of tiny.gguf (Q4_K), as float32"
    assert f"note               {note}" in found.as_text()
    assert found.notes[-1] == (
        "What a vector keeps rests on the first 128 search items of each expert's task, without"
        " their label column, in regmean, fisher."
    )
    assert not list(cache.rglob("calibration*")), "a plan runs no expert on them"


def without_base(values: dict[str, Any]) -> None:
    values["base"] = HUB


def without_an_expert(values: dict[str, Any]) -> None:
    values["experts"]["mood"] = HUB


def without_data(values: dict[str, Any]) -> None:
    values["tasks"]["mood"]["dataset"] = {"hub": HUB}


MISSING: list[tuple[Callable[[dict[str, Any]], None], list[str]]] = [
    (without_base, [f"base: {REASON}"]),
    (
        without_an_expert,
        [f"experts.mood: {REASON}", "tasks.mood: cannot be checked without experts.mood"],
    ),
    (without_data, ["tasks.mood.dataset: cannot be read: "]),
]


@pytest.mark.parametrize(("remove", "unchecked"), MISSING)
def test_a_plan_says_what_it_could_not_check(
    pico: Path,
    cache: Path,
    tmp_path: Path,
    remove: Callable[[dict[str, Any]], None],
    unchecked: list[str],
) -> None:
    values = pico_values(pico)
    values["space"]["lambda"] |= {"groups": {"pooler": "pooler", "rest": "."}}
    remove(values)
    found = plan(write_spec(tmp_path / "x.yaml", values))
    assert found.needs is None
    assert [
        line[: len(start)] for line, start in zip(found.unreachable, unchecked, strict=True)
    ] == (unchecked)
    assert found.candidates == 10
    assert sum(line.startswith("not checked ") for line in found.as_text().splitlines()) == len(
        unchecked
    )


def test_an_adapter_needs_its_base(pico: Path, cache: Path, tmp_path: Path) -> None:
    values = pico_values(pico) | {"base": HUB}
    values["experts"]["mood"] = str(tmp_path / "mood")
    model = transformers.BertForSequenceClassification.from_pretrained(pico / "mood")
    adapt(model, tmp_path / "mood", task_type="SEQ_CLS", target_modules=["query"])
    make_tokenizer(tmp_path / "mood")
    found = plan(write_spec(tmp_path / "x.yaml", values))
    assert found.unreachable[1:] == ("tasks.mood: cannot be checked without the base",)
    settings = tmp_path / "mood" / "adapter_config.json"
    settings.write_text(settings.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(ValueError, match="peft_type: must be LORA"):
        plan(tmp_path / "x.yaml")


def test_a_plan_predicts_candidates_items_and_seconds(
    pico: Path, cache: Path, tmp_path: Path
) -> None:
    """A candidate has 72 items to search and as many to confirm."""
    values = pico_values(pico) | {"baselines": {}}
    found = []
    for budget in ({"trials": 10}, {"items": 500}, {"items": 500, "trials": 5}, {"seconds": 10**6}):
        values["search"] = {"confirm": 2, "workers": 1} | budget
        found.append(plan(write_spec(tmp_path / "x.yaml", values)))
    needs = [one.needs for one in found if one.needs]
    assert [one.candidates for one in found] == [10, 7, 5, found[3].space]
    assert [one.search_items for one in needs] == [720, 7 * 72, 360, found[3].space * 72]
    assert {one.confirm_items for one in needs} == {(1 + 3 + 2) * 72}
    for one in needs:
        assert one.search_seconds == pytest.approx(one.search_items / one.items_per_second)
        assert one.confirm_seconds == pytest.approx(one.confirm_items / one.items_per_second)
    values["search"] |= {"items": 500, "pruner": "race"}
    text = plan(write_spec(tmp_path / "x.yaml", values)).as_text()
    assert "at least 7 of" in text
    assert "at most 504" in text
    assert "items to refine" not in text
    values["search"] |= {"block": 8, "refine": {"levels": "expert", "steps": 4, "ridge": [0, 1]}}
    refined = plan(write_spec(tmp_path / "x.yaml", values))
    assert refined.needs is not None
    # the start's temperatures and loss; with each ridge four steps, of which the last has
    # no gradient, and the end; the candidate
    assert refined.needs.refine_items == 2 * 72 + 2 * ((3 * 3 + 1) * 72 + 72) + 72
    assert refined.rows == 1 + 3 + 2 + 1
    assert f"at most {refined.needs.refine_items:,}" in refined.as_text()


def test_a_plan_measures_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Of time that passes by texts: 3 seconds an item that is written, 1 an item that is read."""
    base = standins.make_base(tmp_path / "base", "llama")
    tasks: dict[str, Any] = {}
    for seed, kind in enumerate(("generation", "language-modeling"), 1):
        rows = standins.write_data(tmp_path / f"{kind}.jsonl", kind, seed, 16)
        tasks[kind] = standins.fields_of(kind) | {"dataset": {"json": str(rows)}}
    values = {
        "name": "texts",
        "base": str(base),
        "experts": {"one": str(base)},
        "tasks": tasks,
        "space": {"method": ["task-arithmetic"]},
        "search": {"trials": 4, "confirm": 2, "workers": 1},
        "device": "cpu",
    }
    now = [0.0]

    def score(_: Any, items: Any, rows: Any) -> None:
        ((task, own),) = rows.items()
        now[0] += len(own) * (3 if task == "generation" else 1)

    monkeypatch.setattr(Workbench, "score", score)
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    found = plan(write_spec(tmp_path / "x.yaml", values))
    assert found.needs is not None
    assert found.needs.items_per_second == pytest.approx(1 / 2)
    assert found.needs.generating == pytest.approx(3 / 4)
    new = tasks["generation"]["max_new_tokens"]
    assert found.needs.new_tokens == (found.candidates or 0) * 8 * new + found.rows * 8 * new
    assert "75% of the time, at most" in found.as_text()
    values["generator"] = "vllm"
    with pytest.raises(ValueError, match="^generator.engine: vllm needs dtype bfloat16"):
        plan(write_spec(tmp_path / "x.yaml", values))
    values["generator"] = "sglang"
    with pytest.raises(ValueError, match="x.yaml: generator.engine: "):
        plan(write_spec(tmp_path / "x.yaml", values))


def test_a_plan_counts_layers_and_anchors(pico: Path, cache: Path, tmp_path: Path) -> None:
    values = pico_values(pico, confirm=2, workers=1)
    values["space"] = {"lambda": {"low": 0, "high": 1, "step": 0.5, "anchors": 2}}
    found = plan(write_spec(tmp_path / "x.yaml", values))
    assert found.space == 3 ** (2 * 3)
    assert found.spec["space"]["lambda"]["layers"] == 2
    assert "anchors: 2" in found.as_text()
    without_base(values)
    assert plan(write_spec(tmp_path / "x.yaml", values)).space == 3 ** (2 * 3)


def no_such_column(values: dict[str, Any], _: Path) -> None:
    values["tasks"]["animal"]["text"] = "nope"


def names_without_numbers(values: dict[str, Any], tmp: Path) -> None:
    values["space"]["lambda"] |= {"anchors": 2}
    for name, folder in [("base", values["base"]), *values["experts"].items()]:
        shutil.copytree(folder, tmp / name)
        file = tmp / name / "model.safetensors"
        tensors = {n: t for n, t in load_file(file).items() if ".layer." not in n}
        save_file(tensors, file, {"format": "pt"})
        if name != "base":
            values["experts"][name] = str(tmp / name)
    values["base"] = str(tmp / "base")


def an_empty_group(values: dict[str, Any], _: Path) -> None:
    values["space"]["lambda"] |= {"groups": {"none": "nothing", "rest": "."}}


def a_damaged_expert(values: dict[str, Any], tmp: Path) -> None:
    shutil.copytree(values["experts"]["animal"], tmp / "damaged")
    (tmp / "damaged" / "model.safetensors").write_bytes(b"x")
    values["experts"]["animal"] = str(tmp / "damaged")


def an_expert_of_another_shape(values: dict[str, Any], tmp: Path) -> None:
    other = make_base(tmp / "other", hidden_size=32)
    values["experts"]["animal"] = str(make_expert(tmp / "odd", other, 1, 3))


def a_headless_expert(values: dict[str, Any], tmp: Path) -> None:
    shutil.copytree(values["base"], tmp / "bare")
    values["experts"]["animal"] = str(tmp / "bare")


def a_missing_folder(values: dict[str, Any], _: Path) -> None:
    values["experts"]["animal"] = "/no/where"


def calibration_without_a_task(values: dict[str, Any], _: Path) -> None:
    values["space"]["method"] = "wanda"
    values["tasks"].pop("pair")


def fisher_of_numbers(values: dict[str, Any], _: Path) -> None:
    values["space"]["method"] = ["regmean", "fisher"]
    values["tasks"]["pair"]["kind"] = "regression"


WRONG = [
    (no_such_column, without_base, "tasks.animal.text: no column nope"),
    (no_such_column, without_an_expert, "tasks.animal.text: no column nope"),
    (names_without_numbers, without_data, "space.lambda.anchors: needs tensors in numbered layers"),
    (an_empty_group, without_an_expert, "space.lambda.groups.none: a group must have tensors"),
    (a_damaged_expert, without_base, "damaged/model.safetensors: cannot be read"),
    (an_expert_of_another_shape, without_an_expert, "experts.animal: an expert must have"),
    (a_headless_expert, without_data, "experts.animal: the expert that scores animal must have"),
    (a_missing_folder, without_base, "experts.animal: /no/where: no such folder"),
    (calibration_without_a_task, without_an_expert, "but pair has none"),
    (
        fisher_of_numbers,
        without_an_expert,
        "space.method: fisher needs the probabilities of classes or choices, but task pair is",
    ),
]


@pytest.mark.parametrize(("spoil", "remove", "message"), WRONG)
def test_errors_in_what_is_at_hand_are_errors(
    pico: Path,
    cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[dict[str, Any], Path], None],
    remove: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    values = pico_values(pico)
    spoil(values, tmp_path)
    remove(values)
    path = write_spec(tmp_path / "x.yaml", values)
    capsys.readouterr()
    assert main(["plan", str(path)]) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("cabs-search")]
    assert len(lines) == 1
    assert message in lines[0]
    assert out == ""


def test_a_group_that_lacks_a_tensor_is_no_error_while_experts_are_missing(
    pico: Path, cache: Path, tmp_path: Path
) -> None:
    """The expert that cannot be had may lack the tensor, which is not merged then."""
    values = pico_values(pico)
    values["space"]["lambda"] |= {"groups": {"lower": "embeddings", "rest": "encoder"}}
    without_an_expert(values)
    assert plan(write_spec(tmp_path / "x.yaml", values)).unreachable


def test_the_plan_as_json_names_all_in_one_text(
    pico: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = pico_values(pico)
    without_an_expert(values)
    assert main(["plan", str(write_spec(tmp_path / "x.yaml", values)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unreachable"].endswith("; tasks.mood: cannot be checked without experts.mood")
    assert found["heads"]["pair"] == ["classifier.bias", "classifier.weight"]


@pytest.mark.parametrize(("base", "billions"), [("nobody/Odd-v0.2-7B-chat", 7), (HUB, None)])
def test_a_language_model_that_cannot_be_had_is_reckoned_by_its_size(
    tmp_path: Path, base: str, billions: float | None
) -> None:
    """A choice of 120 items, searched by 10 candidates at most, and one that generates."""
    values: dict[str, Any] = {
        "name": "pair",
        "base": base,
        "experts": {"a": "nobody/a", "b": "nobody/b"},
        "tasks": {
            "choice": {
                "dataset": {"harness": "arc_easy"},
                "kind": "choices-by-likelihood",
                "metric": "acc",
                "search": {"items": 120},
            },
            "text": {
                "dataset": {"harness": "gsm8k"},
                "kind": "generation",
                "metric": "exact_match",
                "stop": ["\n"],
                "max_new_tokens": 24,
                "search": {"items": 100},
                "confirm": {"items": 50},
            },
        },
        "space": {"method": ["cabs"], "nm": "32:256", "order": [["a", "b"]]},
        "search": {"trials": 10},
        "dtype": "bfloat16",
    }
    found = plan(write_spec(tmp_path / "x.yaml", values))
    text = found.as_text()
    if billions is None:
        assert found.reckoned is None
        assert "bytes, memory, time  unknown" in text
        return
    reckoned = found.reckoned
    assert reckoned is not None
    assert reckoned.parameters == 7e9
    # model and base 2 bytes a weight, of two vectors an eighth of the weights at 8 bytes each
    assert reckoned.gpu.total == pytest.approx(7e9 * (2 + 2 + 2), rel=0.02)
    assert reckoned.items == {"search": 1200, "confirm": 0}
    seconds = 2 * 7e9 * 1200 * 1000 / (0.4 * 989e12)
    assert reckoned.hours["search"]["H100"] == pytest.approx(seconds / 3600)
    assert "fits H100, A100-80\n" in text
    assert "tasks.choice: the spec does not say how many items to confirm" in text
    assert "text" not in reckoned.without
    search, confirm = reckoned.writing["search"], reckoned.writing["confirm"]
    assert (search.texts, search.tokens) == (1000, 24_000)
    assert confirm.texts == 50 * found.rows
    # 32 texts of 1,024 tokens a batch, so 32 batches of 24 steps, after prompts of 1,000 tokens;
    # the RTX 4090 reads 14 GB in 35 ms, the H100 in 10.4
    prompts = {"H100": 2 * 7e9 * 1e6 / (0.4 * 989e12), "RTX 4090": 2 * 7e9 * 1e6 / (0.4 * 165e12)}
    steps = {"H100": 14e9 / (0.4 * 3.35e12), "RTX 4090": 14e9 / (0.4 * 1.008e12)}
    for card, step in steps.items():
        assert search.hours[card] == pytest.approx((prompts[card] + 32 * 24 * step) / 3600)
    line = next(one for one in text.splitlines() if one.startswith("hours to search, texts"))
    assert "to generate 24,000 tokens in 1,000 texts at most" in line
    assert found.as_dict()["reckoned"]["hours"]["search"].keys() == {"H100", "A100-80", "RTX 4090"}


def test_a_plan_says_what_nodes_hold_and_what_travels(
    pico: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every file of these models is needed, but for one that nobody reads."""
    values = pico_values(pico) | {"baselines": {}}
    values["space"] |= {"method": ["task-arithmetic", "wanda"], "density": 0.5}
    models = {"base": pico / "base", **{name: pico / name for name in EXPERTS}}
    shutil.copytree(pico / "mood", tmp_path / "mood")
    (tmp_path / "mood" / "notes.txt").write_text("read by nobody")
    values["experts"]["mood"] = str(tmp_path / "mood")
    sizes = {n: sum(f.stat().st_size for f in folder.iterdir()) for n, folder in models.items()}
    path = write_spec(tmp_path / "x.yaml", values)
    first = plan(path)
    assert first.needs is not None
    assert first.nodes.models == sizes
    assert first.nodes.held == sum(sizes.values()) + first.needs.cache_bytes
    calibrated = first.nodes.vectors_sent
    assert calibrated is not None
    assert 0 < calibrated < first.needs.cache_bytes, "only the driver can build them"
    family = Family.open(values["base"], values["experts"])
    dense = make_method("task-arithmetic", EXPERTS)
    VectorCache(cache).ensure(family, dense)
    assert main(["plan", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["nodes"]
    vectors = len(EXPERTS) * 4 * family.alignment.weights
    assert found["vectors_sent"] == calibrated + vectors
    assert found["sent"] == sum(sizes.values()) + calibrated + vectors
    csv = {str((pico / f"{n}.csv").resolve()): (pico / f"{n}.csv").stat().st_size for n in EXPERTS}
    assert found["data"] == csv
    assert found["submitted"] == sum(csv.values())
    assert f"base {show_bytes(sizes['base'])}, mood {show_bytes(sizes['mood'])}, " in (
        first.as_text()
    )
    without_an_expert(values)
    partly = plan(write_spec(tmp_path / "x.yaml", values))
    assert partly.nodes.models == sizes | {"mood": None}
    assert (partly.nodes.held, partly.nodes.sent, partly.nodes.from_hub) == (None, None, ("mood",))
    assert "unknown in all: base " in partly.as_text()
    assert "mood unknown, animal" in partly.as_text()
    assert "travels to a node" in first.as_text()
    assert "travels to a node" not in partly.as_text()
    assert "the head node downloads mood, once" in partly.as_text()
