"""λ → λ′ and other orders against the bytes that must move and against mergekit (points 2 and
3).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks import families, program
from benchmarks.figures import CORES, Ledger, Target, copier, interleaved, threads
from benchmarks.rivals import Mergekit
from cabs_search.merging.cache import StoredVector, VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.method import (
    CALIBRATION_ITEMS,
    METHOD_NAMES,
    Method,
    combine_rule_of,
    make_method,
)
from cabs_search.merging.recipe import make_recipe
from cabs_search.scoring.calibrate import calibrated
from cabs_search.spec.locations import cache_folder
from cabs_search.tasks.load import load_items

DENSITY = 0.25
COPIED = Target(of="over", most=2)
RIVALS: Mapping[str, tuple[str, dict[str, float | bool], float]] = {
    "task-arithmetic": ("task_arithmetic", {"weight": 0.4}, 30),
    "dare": ("dare_linear", {"weight": 0.4, "density": DENSITY}, 30),
    "ties-magnitude": (
        "ties",
        {"weight": 1.0, "density": DENSITY, "normalize": True, "lambda": 0.4},
        300,
    ),
}
"""Our method's, the same by mergekit, its parameters, and how many times faster we should be."""
SLOW = ("ties",)
"""Rivals that take minutes: measured once a machine."""
Act = Callable[[], object]


def measure(ledger: Ledger) -> None:
    """The quickstart's experts, then BERT-base's shape."""
    with threads(CORES):
        spec = families.quickstart(("topic", "headline", "tweets", "lead"), 8)
        family = Family.open(spec.base, spec.experts)
        orders = (tuple(family.experts), tuple(family.experts)[::-1])
        cabs = {nm: make_method("cabs", orders[0], nm=nm) for nm in ((3, 32), (32, 256))}
        for (n, m), method in cabs.items():
            _next_lambda(ledger, family, method, f"λ → λ′, quickstart's 4 experts, cabs {n}:{m}")
        other = make_method("cabs", orders[0], nm=(3, 32), order=orders[1])
        _switch(
            ledger, family, cabs[3, 32], other, "another order, quickstart's 4 experts, cabs 3:32"
        )
        _switch(
            ledger,
            family,
            cabs[3, 32],
            cabs[32, 256],
            "another n:m, quickstart's 4 experts, 3:32 and 32:256",
        )
        every_method(ledger)
        base, experts = families.bert_base()
        family = Family.open(base, experts)
        orders = (tuple(experts), tuple(experts)[::-1])
        method = make_method("cabs", orders[0], nm=(64, 256))
        _next_lambda(ledger, family, method, "λ → λ′, BERT-base, 3 experts, cabs 64:256")
        other = make_method("cabs", orders[0], nm=(64, 256), order=orders[1])
        _switch(ledger, family, method, other, "another order, BERT-base, 3 experts, cabs 64:256")
        why = Mergekit.missing()
        with (
            families.scratch() as folder,
            nullcontext() if why else Mergekit(base, experts, folder / "merged", CORES) as mergekit,
        ):
            _against_mergekit(ledger, family, experts, folder, mergekit, why)


def every_method(ledger: Ledger) -> None:
    """Measure λ → λ′ of each method on the quickstart's experts, and what its vectors cost once."""
    spec = families.quickstart(("topic", "headline", "tweets", "lead"), CALIBRATION_ITEMS)
    items = {task: load_items(spec, task)["search"] for task in spec.tasks}
    for name in METHOD_NAMES:
        experts = dict(list(spec.experts.items())[: combine_rule_of(name).experts])
        method = make_method(name, tuple(experts), density=DENSITY, nm=(64, 256))
        family = Family.open(spec.base, experts)
        own = {task: items[task] for task in experts}
        family = calibrated(family, own, [method.mask], cache_folder(), "cpu")
        with families.scratch() as folder:
            program.hash_models(family)
            start = time.perf_counter()
            vectors = program.vectors(VectorCache(folder), family, method)
            seconds = time.perf_counter() - start
            moved = program.moved_bytes(family, vectors)
            act = alternating(program.resident(family), vectors, method)
            times = interleaved({"ours": act, "copy": copier(moved)}, rounds=9, warm=2)
        limited = _limited(times, moved)
        limited["note"] += f"; vectors made once in {seconds:.2g} s"
        what = f"λ → λ′, quickstart's {len(experts)} experts, {name}"
        ledger.add(part="materialize", what=what, target=COPIED, **limited)


def alternating(resident: Any, vectors: Mapping[str, StoredVector], method: Method) -> Act:
    """An act that goes to one λ and, the next time, to another."""
    recipes = itertools.cycle(
        [make_recipe(method, dict.fromkeys(vectors, value)) for value in (0.4, 0.7)]
    )
    return lambda: resident.materialize(vectors, next(recipes))


def _next_lambda(ledger: Ledger, family: Family, method: Method, what: str) -> None:
    vectors = program.vectors(VectorCache(cache_folder()), family, method)
    moved = program.moved_bytes(family, vectors)
    act = alternating(program.resident(family), vectors, method)
    times = interleaved({"ours": act, "copy": copier(moved)}, rounds=9, warm=2)
    ledger.add(part="materialize", what=what, target=COPIED, **_limited(times, moved))


def _limited(times: Mapping[str, float], moved: int) -> dict[str, Any]:
    return {
        "value": times["ours"],
        "unit": "s",
        "limit": "copying as many bytes",
        "limit_value": times["copy"],
        "note": f"{moved / 1e6:.0f} MB must move",
    }


def _switch(ledger: Ledger, family: Family, one: Method, two: Method, what: str) -> None:
    """From one method's vectors to another's and back; entries are on disk, in memory only those in
    use.
    """
    store = VectorCache(cache_folder())
    vectors = {method: program.vectors(store, family, method) for method in (one, two)}
    recipes = {
        method: make_recipe(method, dict.fromkeys(family.experts, 0.4)) for method in vectors
    }

    def to(resident: Any) -> Act:
        turns = itertools.cycle(recipes.items())

        def act() -> None:
            method, recipe = next(turns)
            resident.materialize(vectors[method], recipe)

        return act

    acts = {"λ": alternating(program.resident(family), vectors[one], one)}
    acts |= {
        "cached": to(program.resident(family, vector_bytes=0)),
        "held": to(program.resident(family)),
    }
    times = interleaved(acts, rounds=6, warm=2)
    for how, where in (("cached", "read from the cache"), ("held", "seen before")):
        ledger.add(
            part="materialize",
            what=f"{what}, {where}",
            value=times[how],
            unit="s",
            limit="λ → λ′",
            limit_value=times["λ"],
            target=Target(of="over", most=4),
        )


def _against_mergekit(
    ledger: Ledger,
    family: Family,
    experts: Mapping[str, Path],
    folder: Path,
    mergekit: Mergekit | None,
    why: str,
) -> None:
    store = VectorCache(cache_folder())
    for name, (theirs, parameters, least) in RIVALS.items():
        method = make_method(name, tuple(experts), density=DENSITY)
        vectors = program.vectors(store, family, method)
        moved = program.moved_bytes(family, vectors)
        acts: dict[str, Act] = {"ours": alternating(program.resident(family), vectors, method)}
        acts["copy"] = copier(moved)
        what, notes = f"λ → λ′, BERT-base, 3 experts, {name}", [f"{moved / 1e6:.0f} MB must move"]
        values: dict[str, Any] = {
            "part": "materialize",
            "what": what,
            "unit": "s",
            "target": COPIED,
        }
        if mergekit is None:
            times = interleaved(acts, rounds=5)
            ledger.add(**values | _limited(times, moved) | {"note": why})
            continue
        if theirs in SLOW:
            times = interleaved(acts, rounds=5)
            for act in ("run_merge", "merge_state_dicts"):
                seconds, when = _once(ledger, mergekit, act, theirs, parameters)
                times[act], notes = seconds, [*notes, f"mergekit's {act} measured once, {when}"]
        else:
            for act in ("run_merge", "merge_state_dicts"):
                acts[act] = _job(mergekit, act, theirs, parameters)
            times = interleaved(acts, rounds=3)
        ledger.add(**values | _limited(times, moved))
        note = "; ".join(
            [_agreement(method, family, vectors, folder / "merged", parameters), *notes[1:]]
        )
        for act, target in (
            ("run_merge", Target(of="ratio", least=least)),
            ("merge_state_dicts", None),
        ):
            rival = {"rival": f"mergekit {theirs}, {act}", "rival_value": times[act]}
            rival |= {"rival": f"{rival['rival']}, reload"} if act == "run_merge" else {}
            own = {
                "part": "materialize",
                "what": f"{what}, {act}",
                "value": times["ours"],
                "unit": "s",
            }
            ledger.add(**own, **rival, target=target, note=note if act == "run_merge" else "")


def _job(
    mergekit: Mergekit, act: str, method: str, parameters: Mapping[str, float | bool]
) -> Callable[[], float]:
    return lambda: mergekit.seconds(act, method, **parameters)


def _once(
    ledger: Ledger,
    mergekit: Mergekit,
    act: str,
    method: str,
    parameters: Mapping[str, float | bool],
) -> tuple[float, str]:
    """A slow rival's seconds; said first, as it is minutes."""
    key = f"mergekit {act} {method} {sorted(parameters.items())}, BERT-base, {CORES} threads"
    if key not in ledger.rivals:
        ledger.say(f"  mergekit's {act} of {method}, once a machine: a minute or two")
    return ledger.remember(key, _job(mergekit, act, method, parameters))


def _agreement(
    method: Method,
    family: Family,
    vectors: Mapping[str, StoredVector],
    merged: Path,
    parameters: Mapping[str, float | bool],
) -> str:
    """How far our merge is from mergekit's, where both are functions of their input."""
    if method.name == "dare" or not (merged / "model.safetensors").is_file():
        return ""
    from safetensors import safe_open

    value = float(parameters.get("lambda", parameters["weight"]))
    resident = program.resident(family)
    resident.materialize(vectors, make_recipe(method, dict.fromkeys(vectors, value)))
    with safe_open(merged / "model.safetensors", framework="pt") as file:
        far = {
            n: float((t - file.get_tensor(n).reshape(-1)).abs().max())
            for n, t in program.tensors(resident).items()
        }
    name = max(far, key=lambda n: far[n])
    return f"merged tensors differ from mergekit's by {far[name]:.1g} at the most"
