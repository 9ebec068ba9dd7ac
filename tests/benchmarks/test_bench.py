"""The bench's own arithmetic; its timings are nobody's test."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import families, gpu, program
from benchmarks.docs import BEGIN, END
from benchmarks.figures import Figure, Ledger, Target, interleaved
from benchmarks.rivals import loop_mask, topk_mask
from benchmarks.search import steady
from benchmarks.size import slope
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.n_m import nm_mask
from cabs_search.merging.method import make_method


def test_seconds_are_better_small_and_rates_large() -> None:
    seconds = Figure(part="masks", what="", value=2, unit="s", rival_value=6, limit_value=1)
    rate = Figure(part="masks", what="", value=6, unit="items/s", rival_value=2, limit_value=12)
    assert (seconds.ratio, seconds.over) == (3, 2)
    assert (rate.ratio, rate.over) == (3, 2)


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(of="ratio", least=3), True),
        (Target(of="ratio", least=3.1), False),
        (Target(of="over", most=2), True),
        (Target(of="over", most=1.9), False),
        (Target(of="value", least=1.5, most=2.5), True),
        (Target(of="value", least=2.1, most=2.5), False),
        (None, None),
    ],
)
def test_a_target_is_met_or_not(target: Target | None, met: bool | None) -> None:
    figure = Figure(
        part="masks", what="", value=2, unit="s", rival_value=6, limit_value=1, target=target
    )
    assert figure.met is met
    assert Figure.from_dict(figure.as_dict()) == figure


def test_a_later_run_keeps_the_other_parts(tmp_path: Path) -> None:
    for part in ("size", "masks", "size"):
        ledger = Ledger(tmp_path / "bench.json")
        ledger.begin(part)
        ledger.add(part=part, what=part, value=1.0, unit="s")
    again = Ledger(tmp_path / "bench.json")
    assert [f.what for f in again.figures] == ["masks", "size"]
    assert again.as_markdown().count("| 1 s |") == 2


def test_acts_take_turns_and_may_time_themselves() -> None:
    turns: list[str] = []
    times = interleaved(
        {"a": lambda: turns.append("a"), "b": lambda: turns.append("b") or 7.0}, rounds=2
    )
    assert turns == ["a", "b"] * 3
    assert times["b"] == 7.0


def test_slope_of_linear_cost_is_one() -> None:
    assert slope([1e6, 1e7, 1e9], [2e-3, 2e-2, 2.0]) == pytest.approx(1)
    assert slope([1.0, 10.0], [1.0, 100.0]) == pytest.approx(2)


def test_the_steady_state_leaves_out_the_first_quarter() -> None:
    slow = [f"2026-01-01 00:00:{second:02}" for second in (20, 40)]
    fast = [f"2026-01-01 00:00:{40 + second}.5" for second in range(1, 7)]
    assert steady([*slow, *fast]) == pytest.approx(3600)


def test_rival_masks_are_ours() -> None:
    delta = torch.randn(8, 96, generator=torch.Generator().manual_seed(0))
    for rival in (topk_mask, loop_mask):
        assert torch.equal(rival(delta, 3, 32), nm_mask(delta, 3, 32).reshape(-1))


def test_bytes_that_must_move(tmp_path: Path) -> None:
    base, experts = families.write(
        tmp_path / "models", {"a": (64, 256), "b": (256,)}, 2, torch.float32
    )
    family = Family.open(base, experts)
    weights = 65 * 256
    whole = program.vectors(
        VectorCache(tmp_path), family, make_method("task-arithmetic", tuple(experts))
    )
    assert (
        program.moved_bytes(family, whole) == 4 * weights * 4
    )  # two vectors, the base read, the model written
    pruned = program.vectors(
        VectorCache(tmp_path), family, make_method("cabs", tuple(experts), nm=(64, 256))
    )
    values, lines = (
        weights // 2 * 4,
        weights * 4,
    )  # half of the weights: hardly a line of 16 has none
    assert (
        values + 1.99 * lines
        < program.moved_bytes(family, pruned)
        <= values + 2 * (weights // 8 + 64) + 2 * lines
    )


def test_candidates_of_a_gpu_are_measured(tmp_path: Path) -> None:
    """On the CPU here, with a model that is small."""
    shapes = families.mistral(2, hidden=256, inner=64, pairs=128, vocabulary=96)
    family = gpu.family_of(tmp_path, shapes)
    ledger = Ledger(tmp_path / "bench.json")
    gpu.candidates(ledger, family, VectorCache(tmp_path / "cache"), "cpu", 3, 30)
    documents, candidates = ledger.figures
    assert (documents.unit, candidates.unit) == ("documents/s", "candidates/h")
    assert 0 < candidates.value < 3600 * documents.value / 3


def test_mistral_has_its_weights() -> None:
    assert families.numel(families.mistral()) == 7_241_732_096
    assert families.numel(families.flat(1 << 24)) == 1 << 24


def test_the_page_has_a_place_for_the_figures() -> None:
    page = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert page.index(BEGIN) < page.index(END)
