"""``compare`` on pico models: a table of all rows on the same items; random masks; vectors."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from cabs_search.cli.main import main
from cabs_search.cluster.driver import stop_ray
from cabs_search.common.formats import finite
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import CALIBRATION_ITEMS, METHOD_NAMES, make_method
from cabs_search.record.entries import Scored
from cabs_search.reporting.terminal.comparison import comparison_text
from cabs_search.reporting.terminal.leaderboard import leaderboard_text
from cabs_search.results.read_comparison import read_comparison
from cabs_search.scoring.calibrate import calibrated
from cabs_search.search.axes import axis_values
from cabs_search.search.candidates import Candidates
from cabs_search.spec.load import parse
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.workflows import vectors as looking
from cabs_search.workflows.compare import compare
from cabs_search.workflows.export import export_trial
from cabs_search.workflows.run import run
from cabs_search.workflows.vectors import inspect
from tests.conftest import EXPERTS, pico_values, write_spec
from tests.end_to_end.test_run import call
from tests.support.records import record_of

ROWS = (
    *("task-arithmetic", "magnitude-vector", "della", "wanda", "sparsegpt", "regmean", "fisher"),
    *("bs", "cabs", "linear", "ties", "ties-dare", "sce", "ram", "model-stock", "tsv", "iso-c"),
)
"""Methods of every sort; what all of them merge is tested in ``tests/merging``."""
OVER = f"method={','.join(ROWS)}"


def small(pico: Path, **changes: Any) -> dict[str, Any]:
    values = pico_values(pico, trials=4, confirm=1) | changes
    values["space"] |= {"order": [list(EXPERTS), list(EXPERTS[::-1])], "nm": ["2:8", "8:32"]}
    return values


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """Start one Ray for all comparisons of this process."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(
        address="local", num_cpus=4, include_dashboard=False, object_store_memory=256 << 20, **quiet
    )
    yield
    stop_ray()


@pytest.fixture(scope="module")
def methods(pico: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compare methods of every sort; the folder holds ``stdout`` too."""
    root = tmp_path_factory.mktemp("methods")
    spec = write_spec(root / "pico.yaml", small(pico))
    found = call("compare", spec, "--over", OVER, "--output", root / "out", cache=cache)
    (root / "out" / "stdout").write_text(found.stdout)
    return root / "out"


def test_every_method_is_a_row(methods: Path) -> None:
    text = (methods / "stdout").read_text()
    rows = [line.split("  ")[0] for line in text.splitlines()]
    for label in ("base", *(f"expert {e}" for e in EXPERTS), "ideal", "best shared TA", *ROWS):
        assert rows.count(label) == 1, label
    assert "not run" not in text
    assert (
        "wanda: 26 of 39 tensors (21% of the weights) are no linear layer's and are pruned by"
        " magnitude." in text
    )
    assert "(21% of the weights) are no linear layer's and are averaged." in text
    assert (
        "What a vector keeps rests on the first 128 search items of each expert's task, without"
        " their label column, in wanda, sparsegpt, regmean, fisher." in text
    )


def test_every_row_has_its_budget_and_the_same_items(methods: Path) -> None:
    found = read_comparison(methods)
    assert {line.candidates for line in found.lines} == {4}
    assert all(line.row is not None and line.shared is not None for line in found.lines)
    for line in found.lines:
        assert line.row is not None
        assert line.row.score == pytest.approx(np.mean(list(line.row.tasks.values())))
        assert found.reference is not None
        if line.row.key == found.reference.key:
            assert line.against is None
        else:
            assert line.against is not None
            assert line.against.estimate == pytest.approx(line.row.score - found.reference.score)


def test_every_pair_of_rows_is_compared(methods: Path) -> None:
    found = read_comparison(methods)
    assert found.matrix is not None
    assert found.tie_set is not None
    scores = {line.label: line.row.score for line in found.lines if line.row}
    assert set(found.matrix.labels) <= set(ROWS)
    for i, one in enumerate(found.matrix.labels):
        for j, other in enumerate(found.matrix.labels):
            assert found.matrix.estimate[i][j] == pytest.approx(scores[one] - scores[other])
            assert found.matrix.low[i][j] <= found.matrix.estimate[i][j] <= found.matrix.high[i][j]
            assert found.matrix.p_holm[i][j] == found.matrix.p_holm[j][i]
    assert max(scores, key=lambda label: scores[label]) in found.tie_set.labels
    text = (methods / "stdout").read_text()
    assert found.finding in text
    for label in found.matrix.labels:
        row = next(line for line in found.lines if line.label == label).row
        assert row is not None
        assert row.tied == (label in found.tie_set.labels)


def test_report_prints_a_comparison_again(methods: Path, cache: Path) -> None:
    assert call("report", methods, cache=cache).stdout == (methods / "stdout").read_text()
    plain = json.loads(call("report", methods, "--json", cache=cache).stdout)
    assert [line["label"] for line in plain["lines"]] == list(ROWS)


def test_each_value_is_a_run_of_its_own_in_mlflow(methods: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{methods / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("pico-over-method")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = {r.info.run_name: r for r in runs if "mlflow.parentRunId" not in r.data.tags}
    assert set(parents) == {f"pico {name}" for name in ROWS}
    assert {r.info.status for r in runs} == {"FINISHED"}
    for name, parent in parents.items():
        mine = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert {r.data.params["method"] for r in mine} == {name.removeprefix("pico ")}
        assert len(mine) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_run_again_scores_nothing(
    methods: Path, pico: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(cache))
    before = (methods / "outcomes" / "outcomes.sqlite").read_bytes()
    again = compare(parse(small(pico)), [OVER], methods, say=lambda _: None)
    assert (methods / "stdout").read_text().startswith(comparison_text(again))
    assert (methods / "outcomes" / "outcomes.sqlite").read_bytes() == before


@pytest.mark.usefixtures("workers")
def test_rows_that_fail_or_cannot_run_say_why(
    pico: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has λ so large that losses are not finite, one lacks an expert's items to calibrate on;
    the others run.
    """
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(cache))
    values = small(pico) | {"dtype": "float16"}
    del values["tasks"]["animal"]
    values["space"]["lambda"] = {
        "low": 0,
        "high": 1,
        "step": 0.1,
        "methods": {"dare": {"low": 9e5, "high": 1e6, "step": 1e4}},
    }
    found = compare(parse(values), ["method=dare,wanda,bs"], tmp_path / "out", say=lambda _: None)
    lines = {line.label: line for line in found.lines}
    assert lines["bs"].row is not None
    assert lines["dare"].row is lines["wanda"].row is None
    assert "3 candidates in a row failed" in (lines["dare"].failure or "")
    assert "but animal has none" in (lines["wanda"].failure or "")
    assert "not run: space.method: wanda takes calibration items" in comparison_text(found)
    assert [row.label for row in found.alone] == [
        "base",
        *(f"expert {e}" for e in EXPERTS),
        "ideal",
    ], "not lost with it"


@pytest.mark.parametrize(
    "over",
    [
        pytest.param(["density=0.25,0.5"], marks=pytest.mark.slow),
        ["method=magnitude,cabs", "density=0.25,0.5"],
    ],
)
@pytest.mark.usefixtures("workers")
def test_the_other_axes(
    pico: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: list[str]
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(cache))
    spec = parse(small(pico))
    found = compare(spec, over, tmp_path / "out", say=lambda _: None)
    labels = [line.label for line in found.lines]
    assert all(line.row is not None for line in found.lines), comparison_text(found)
    expected = {
        "density=0.25,0.5": ["0.25", "0.5"],
        "method=magnitude,cabs": ["magnitude 0.25", "magnitude 0.5", "cabs 0.25", "cabs 0.5"],
    }[over[0]]
    assert labels == [*expected, "task-arithmetic"], (
        "what all rows are held against is searched as well"
    )
    if len(over) == 2:
        assert "average    0.25" in comparison_text(found)
        assert {
            str(line.row.text).split(" λ")[0]
            for line in found.lines
            if line.row and "cabs" in line.label
        } >= {f"cabs {n}:8 mood>animal>pair" for n in (2, 4)} or any(
            "cabs 4:8" in line.row.text for line in found.lines if line.row
        )


def test_a_folder_of_something_else_is_refused(methods: Path, pico: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds a comparison over method=.*; choose another --output"
    ):
        run(parse(small(pico)), methods)
    with pytest.raises(
        ValueError, match=r"holds a comparison over method=.*; choose another --output"
    ):
        compare(parse(small(pico)), ["nm"], methods)
    (tmp_path / "study.db").touch()
    with pytest.raises(
        ValueError, match="holds a study, not a comparison; choose another --output"
    ):
        compare(parse(small(pico)), ["nm"], tmp_path)


def test_a_rows_best_can_be_exported(methods: Path, cache: Path, tmp_path: Path) -> None:
    call("export", methods, "--trial", "ties-dare", "--to", tmp_path / "best", cache=cache)
    found = {line.label: line for line in read_comparison(methods).lines}
    recipe = json.loads((tmp_path / "best" / "recipe.json").read_text())
    assert found["ties-dare"].row is not None
    assert recipe == found["ties-dare"].row.recipe
    error = call(
        "export", methods, "--trial", "magic", "--to", tmp_path / "other", cache=cache, status=2
    ).stderr
    assert (
        "--trial: a row of the comparison must be named (task-arithmetic, magnitude-vector,"
        in error
    )


@pytest.mark.parametrize(
    ("axis", "labels"),
    [("order", ["mood>animal>pair", "pair>animal>mood"]), ("nm", ["2:8", "8:32"])],
)
def test_an_axis_has_the_specs_values(pico: Path, axis: str, labels: list[str]) -> None:
    rows = axis_values(parse(small(pico)), [axis])
    assert [v.label for v in rows] == [*labels, "task-arithmetic"], (
        "what all are held against is a row as well"
    )
    assert all(len(v.spec.orders if axis == "order" else v.spec.space.nm) == 1 for v in rows[:2])


def test_a_study_that_is_the_same_at_every_density_is_run_once(pico: Path) -> None:
    rows = axis_values(parse(small(pico)), ["method=task-arithmetic,dare", "density=0.1,0.5"])
    assert [(v.label, v.same_as) for v in rows] == [
        ("task-arithmetic 0.1", None),
        ("task-arithmetic 0.5", "task-arithmetic 0.1"),
        ("dare 0.1", None),
        ("dare 0.5", None),
    ]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (
            ["magic"],
            "--over: one of method, order, nm, density, growth, rounds, alpha,"
            " epsilon, limit, gamma, threshold is"
            " needed, but got magic",
        ),
        (
            ["method", "method"],
            "--over: one axis or two different ones are needed, but got method, method",
        ),
        (["method=dare"], "--over: two values at the least are needed, but method=dare gives dare"),
        (["method=dare,magic"], "method must be one of"),
        (["density=0.5,2"], "0 < density <= 1 must hold, but got 2"),
        (["density=0.01,0.5"], "--over: density * m >= 1/2 must hold, but got 0.01 with 2:8"),
        (
            ["order=mood>pair,pair>mood"],
            "--over: an order must name every expert once (mood, animal, pair)",
        ),
        (["nm=9:8,2:8"], "n <= m must hold, but got 9:8"),
        (
            ["nm", "density"],
            "--over: one axis or two different ones are needed, but got nm, density",
        ),
    ],
)
def test_wrong_axes_meet_one_line(
    pico: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], over: list[str], message: str
) -> None:
    spec = write_spec(tmp_path / "pico.yaml", small(pico))
    arguments = [part for axis in over for part in ("--over", axis)]
    assert main(["compare", str(spec), *arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_rows_that_are_partly_one_are_refused(pico: Path) -> None:
    values = small(pico)
    values["space"]["method"] = ["cabs", "magnitude"]
    with pytest.raises(ValueError, match="--over: 0.25 and 0.26 are partly the same: cabs 2:8"):
        axis_values(parse(values), ["density=0.25,0.26"])


def test_a_baseline_outside_the_space_is_a_candidate_of_its_row(pico: Path) -> None:
    values = small(pico)
    values["baselines"] = {"cabs": {"lambda": [1.0], "nm": "1:4"}}
    row = {v.label: v for v in axis_values(parse(values), ["method=cabs,bs"])}
    cabs, bs = (Candidates.of(row[name].spec) for name in ("cabs", "bs"))
    (outside,) = cabs.baseline_recipes
    assert not cabs.holds(outside.method)
    assert cabs.includes(outside)
    assert not bs.includes(outside)


def test_methods_that_are_one_are_run_once(pico: Path) -> None:
    values = small(pico)
    values["space"]["overlap_merge"] = "ties"
    rows = axis_values(parse(values), ["method"])
    assert [v.label for v in rows] == list(METHOD_NAMES)
    assert {v.label: v.same_as for v in rows if v.same_as} == {"ties-cabs": "cabs"}


def test_settings_beside_cabs_are_axes(pico: Path) -> None:
    values = small(pico)
    values["space"] |= {"method": ["cabs", "cabs-rounds"], "rounds": [2, 4]}
    rows = axis_values(parse(values), ["rounds"])
    assert [v.label for v in rows] == ["2", "4", "task-arithmetic"]
    assert {v.spec.space.method for v in rows[:2]} == {("cabs-rounds",)}
    values["space"]["rounds"] = [0]
    with pytest.raises(ValueError, match="space: rounds: rounds must be a whole number from 1"):
        parse(values)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "nm",
            ["4:16"],
            (
                "space.nm: must stay as it was when the comparison in .* began .2:8, 8:32., but got"
                " 4:16"
            ),
        ),
        (
            "tail",
            "drop",
            "space.tail: must stay as it was when the comparison in .* began .keep., but got drop",
        ),
    ],
)
def test_a_comparison_of_another_space_is_refused(
    methods: Path, pico: Path, field: str, value: Any, message: str
) -> None:
    values = small(pico)
    values["space"][field] = value
    before = (methods / "comparison.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        compare(parse(values), [OVER], methods)
    assert (methods / "comparison.yaml").read_text() == before


def test_numbers_that_json_does_not_know_are_none() -> None:
    assert finite({"a": [float("-inf"), (1.5, float("nan"))], "Infinity": 2}) == {
        "a": [None, [1.5, None]],
        "Infinity": 2,
    }


def test_an_axis_that_makes_no_difference_is_refused(pico: Path) -> None:
    values = small(pico)
    values["space"]["method"] = "dare"
    with pytest.raises(ValueError, match="--over: order makes no difference to dare"):
        axis_values(parse(values), ["order"])


# Random masks


def dare_scores(folder: Path, spec: Spec) -> dict[str, Scored]:
    return record_of(folder).scored("search")


def dare_values(pico: Path, workers: int) -> dict[str, Any]:
    values = small(
        pico, baselines={"dare": {"lambda": [0.3, 0.6, 0.9, 1.2]}, "ties-dare": {"lambda": [0.5]}}
    )
    values["space"] |= {"method": ["dare", "ties-dare"]}
    values["search"] |= {"workers": workers, "trials": 5}
    return values


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_dare_is_the_same_with_other_workers_in_other_processes_and_after_a_resume(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs share no cache, and so draw their masks anew, as does the resumed one."""
    found = {}
    spec = write_spec(tmp_path / "1.yaml", dare_values(pico, 1))
    call("run", spec, "--output", tmp_path / "out1", cache=tmp_path / "cache1")
    found[1] = dare_scores(tmp_path / "out1", parse(dare_values(pico, 1)))
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "cache4"))
    run(parse(dare_values(pico, 4)), tmp_path / "out4", say=lambda _: None)
    found[4] = dare_scores(tmp_path / "out4", parse(dare_values(pico, 4)))
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "cacheR"))
    run(parse(dare_values(pico, 2)).override(trials=2), tmp_path / "resumed", say=lambda _: None)
    shutil.rmtree(tmp_path / "cacheR")
    run(parse(dare_values(pico, 2)), tmp_path / "resumed", say=lambda _: None)
    found[2] = dare_scores(tmp_path / "resumed", parse(dare_values(pico, 2)))
    assert found[1].keys() == found[4].keys() == found[2].keys()
    assert len(found[1]) == 5
    for key, scored in found[1].items():
        for other in (4, 2):
            for task, outcome in scored.tasks.items():
                assert np.array_equal(
                    outcome.predictions, found[other][key].tasks[task].predictions
                )
                assert np.allclose(outcome.losses, found[other][key].tasks[task].losses, atol=1e-6)
    drawn = {p.name: p.read_bytes() for p in (tmp_path / "cache1" / "vectors-v2").iterdir()}
    for other in ("cache4", "cacheR"):
        again = {p.name: p.read_bytes() for p in (tmp_path / other / "vectors-v2").iterdir()}
        assert len(again) >= 3
        assert all(drawn[name] == content for name, content in again.items())


# Diagnostics and calibration


def test_bs_balances_what_magnitude_does_not(pico: Path, tmp_path: Path) -> None:
    family = Family.open(pico / "base", {n: pico / n for n in EXPERTS})
    found = {
        name: inspect(
            family, VectorCache(tmp_path), make_method(name, EXPERTS, nm=(2, 8), density=0.25)
        )
        for name in ("magnitude-vector", "bs", "cabs")
    }
    spread = {
        name: np.ptp([d["mood"] for layer, d in v.depth.items() if "block" in layer])
        for name, v in found.items()
    }
    assert spread["bs"] < 0.01
    assert spread["bs"] < spread["magnitude-vector"]
    assert found["cabs"].overlap[0][1] < 0.03 < found["bs"].overlap[0][1], "only tails may meet"
    assert abs(found["cabs"].kept_cosine[0][1]) < abs(found["bs"].kept_cosine[0][1]) + 0.05
    assert all(v.kept_norm[e] < v.norm[e] for v in found.values() for e in EXPERTS)
    assert list(found["bs"].depth) == ["embeddings", "block 0", "block 1", "other"]


def test_norms_and_cosines_are_those_of_the_vectors(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "PART", 1000)  # most tensors in several parts
    family = Family.open(pico / "base", {n: pico / n for n in EXPERTS})
    cache, method = VectorCache(tmp_path), make_method("magnitude", EXPERTS, density=0.1)
    found = inspect(family, cache, method)
    for name, vector in cache.open(cache.ensure(family, method)).items():
        kept = [vector.kept(t, family.numel(t)) for t in family.alignment.shared]
        values = np.concatenate([one.values.numpy() for one in kept if one is not None])
        assert found.kept_norm[name] == pytest.approx(np.linalg.norm(values), rel=1e-5)
    whole = [
        np.concatenate([family.delta(t, e).numpy().ravel() for t in family.alignment.shared])
        for e in EXPERTS
    ]
    assert found.norm["animal"] == pytest.approx(np.linalg.norm(whole[1]), rel=1e-5)
    expected = whole[0] @ whole[2] / np.linalg.norm(whole[0]) / np.linalg.norm(whole[2])
    assert found.cosine[0][2] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_vectors_are_drawn(
    pico: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(cache))
    spec = write_spec(tmp_path / "pico.yaml", small(pico))
    picture = tmp_path / "new" / f"v.{suffix}"
    arguments = ["--method", "magnitude-vector", "--method", "wanda", "--picture", str(picture)]
    assert main(["vectors", str(spec), *arguments]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert picture.stat().st_size > 10_000


def test_calibration_items_are_the_searchs_and_padding_counts_for_nothing(
    pico: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XᵀX is that of items one by one, without padding and batches."""
    import torch
    from transformers import AutoModelForSequenceClassification

    spec = parse(small(pico))
    items = load_study_items(spec)["search"]
    family = Family.open(spec.base, spec.experts)

    def calibrations(method: str) -> Any:
        mask = make_method(method, EXPERTS).mask
        return calibrated(family, items, [mask], tmp_path).calibrations_for(mask)

    found = calibrations("sparsegpt")
    model = AutoModelForSequenceClassification.from_pretrained(
        pico / "pair", dtype=torch.float32
    ).eval()
    for tensor, layer in (
        ("encoder.layer.1.output.dense.weight", model.bert.encoder.layer[1].output.dense),
        ("pooler.dense.weight", model.bert.pooler.dense),
    ):
        seen: list[torch.Tensor] = []
        hook = layer.register_forward_pre_hook(
            lambda _, inputs, into=seen: into.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
        )
        with torch.inference_mode():
            for i in range(min(CALIBRATION_ITEMS, len(items["pair"]))):
                one = {k: torch.tensor([v]) for k, v in items["pair"].rows[i].sequences[0].items()}
                model(**one)
        hook.remove()
        inputs = torch.cat(seen)
        gram = found["pair"].read(tensor)
        assert gram is not None
        assert torch.allclose(gram, inputs.T @ inputs, rtol=1e-4, atol=1e-3), tensor
    assert found["pair"].read("embeddings.word_embeddings.weight") is None
    again = calibrations("wanda")
    diagonal = again["pair"].read("pooler.dense.weight")
    assert diagonal is not None
    assert torch.allclose(
        diagonal, torch.diagonal(found["pair"].read("pooler.dense.weight")), rtol=1e-5
    )  # type: ignore[arg-type]
    key, value = (
        found["pair"].read(f"encoder.layer.0.attention.self.{name}.weight")
        for name in ("key", "value")
    )
    assert key is not None
    assert value is not None
    assert torch.equal(key, value), "they see the same inputs"
    assert calibrations("sparsegpt")["pair"].path == found["pair"].path
    assert calibrations("dare") == {}


@pytest.mark.slow
@pytest.mark.usefixtures("workers")
def test_an_export_of_a_calibrated_method_is_what_was_scored(
    methods: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export`` takes a study: here of one method."""
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(cache))
    spec_path = methods / "spec.yaml"
    import yaml

    values = yaml.safe_load(spec_path.read_text())
    values["space"] |= {"method": ["regmean"]}
    values["baselines"], values["name"] = {"regmean": {"lambda": [0.5, 1.0]}}, "w"
    values["search"]["trials"] = 2
    board = run(parse(values), tmp_path / "out", say=lambda _: None).leaderboard
    assert "without their label column, in regmean." in leaderboard_text(board)
    export_trial(tmp_path / "out", "best", tmp_path / "best")
    import torch
    from transformers import AutoModelForSequenceClassification

    from cabs_search.scoring.forward import evaluate

    parsed = parse(values)
    recipe = json.loads((tmp_path / "best" / "recipe.json").read_text())
    scored = next(
        s
        for s in record_of(tmp_path / "out").scored("search").values()
        if s.recipe.as_dict() == recipe
    )
    for task, items in load_study_items(parsed)["search"].items():
        model = AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "best" / "heads" / task
        ).eval()
        found = evaluate(model, items, np.arange(len(items)), torch.device("cpu"))
        assert np.array_equal(found.predictions, scored.tasks[task].predictions)
