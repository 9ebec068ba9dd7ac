"""Checks of a spec, its models, its items and its output folder, before anything is written."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from cabs_search.common.patterns import slow_pattern
from cabs_search.common.redact import without_password
from cabs_search.merging.cache import VectorCache
from cabs_search.merging.calibration import CalibrationKey
from cabs_search.merging.family import Family
from cabs_search.merging.layers import MOST_LAYERS, check_anchors, count_layers
from cabs_search.merging.masks.rule import MaskRule
from cabs_search.merging.masks.rules import CALIBRATED
from cabs_search.merging.method import Method, calibration_note, check_experts
from cabs_search.merging.recipe import BASE, Groups, group_of
from cabs_search.record.comparison_file import check_folder
from cabs_search.scoring.batches import blocks
from cabs_search.scoring.calibrate import calibrated, check_calibration
from cabs_search.scoring.models import check_heads, pick_device
from cabs_search.scoring.vllm import check_vllm
from cabs_search.search.candidates import Candidates
from cabs_search.search.objectives.check import check_objective
from cabs_search.search.pruners.registry import check_pruner
from cabs_search.search.refine.check import check_refine
from cabs_search.search.samplers.registry import check_sampler, check_size
from cabs_search.search.stacks import line_of
from cabs_search.search.storage import storage_url
from cabs_search.spec.generator import VLLM
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.items import Items, SplitName
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.background import Say
from cabs_search.tracking.server import given_uri


def to_stderr(text: str) -> None:
    """Print a message to the person who waits, above a progress bar."""
    tqdm.write(text, file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A checked spec with its opened models and its items."""

    spec: Spec
    folder: Path
    """The output folder, which may not exist yet."""
    family: Family
    items: Mapping[SplitName, Mapping[str, Items]]
    """Items by split and task."""
    weights: Mapping[str, str]
    """Fingerprint of the base and of each expert."""


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """Results of pruning by rules that need calibration items."""

    files: Mapping[CalibrationKey, Path] = field(default_factory=dict)
    """Files of calibration statistics; none if no rule needs them."""
    notes: tuple[str, ...] = ()
    """Sentences for the report on what those rules could not prune."""


def prepare(
    spec: Spec | str | Path,
    output: str | Path | None,
    address: str | None,
    say: Say,
    over: Sequence[str] | None = None,
) -> Prepared:
    """Check everything that a search needs; write nothing.

    Args:
        spec: a spec, or the path of its file.
        output: the output folder; None: ``results/NAME``.
        address: a running Ray cluster's; None: workers on this machine.
        say: receives a line when the long checks begin.
        over: axes of a comparison; None: a single study.

    Raises:
        ValueError: the spec, its models, its data or the folder are wrong.
        RuntimeError: nothing answers at ``address``.

    """
    spec = spec if isinstance(spec, Spec) else load(spec)
    folder = Path(output) if output else Path("results") / spec.name
    if set("?%") & set(str(folder.absolute())):
        raise ValueError(
            f"{folder}: must have no ? and no % in its path, which mean something in a"
            " database's URL"
        )
    if address:
        check_reachable(address)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: must be a folder")
    if cache_folder().exists() and not cache_folder().is_dir():
        raise ValueError(f"{cache_folder()}: the cache must be a folder; see CABS_SEARCH_CACHE")
    check_folder(folder, spec.space, over)
    if over is None:  # of a comparison, a row fails by itself
        check_experts(spec.methods, spec.experts)
    check_sampler(spec)
    check_objective(spec)
    check_pruner(spec.search, spec.tasks)
    say(f"checking {len(spec.experts)} experts and {len(spec.tasks)} tasks")
    family = Family.open(spec.base, spec.experts, spec.vocabulary, spec.pickled)
    check_heads(spec.heads, family)
    check_generation(spec, family, is_here=address is None)
    check_groups(spec.space.groups, family.alignment.shared)
    spec = with_stack(with_layers(spec, family.alignment.shared), family)
    check_size(spec)
    items = load_study_items(spec)
    check_refine(spec, family.alignment.shared, len(blocks(items["search"], spec.search.block)))
    if address is None:
        pick_device(spec.device)
    experts = family.fingerprints  # before the base's, which is hashed at the same time
    weights = {BASE: family.base.fingerprint} | experts
    return Prepared(spec=spec, folder=folder, family=family, items=items, weights=weights)


def check_databases(spec: Spec, folder: Path, tracking_uri: str | None) -> None:
    """Check that Optuna and MLflow do not share a database: both keep a table ``alembic_version``.

    Raises:
        ValueError: they do.

    """
    storage = storage_url(folder, spec.search.storage)
    if storage and storage == given_uri(tracking_uri):
        raise ValueError(
            f"search.storage: must be a database of its own, but {without_password(storage)} is"
            " MLflow's too"
        )


def prune_calibrated(prepared: Prepared, specs: Iterable[Spec], say: Say) -> Calibrated:
    """Build the vectors of rules that need calibration items, which workers cannot do.

    Args:
        prepared: the study or comparison.
        specs: its spec, or those of a comparison's rows.
        say: receives the notes.

    """
    specs = list(specs)
    masks = dict.fromkeys(mask for spec in specs for mask in _calibrated_masks(spec))
    if not masks:
        return Calibrated()
    family = calibrated(
        prepared.family, prepared.items["search"], masks, cache_folder(), prepared.spec.device
    )
    total, notes = family.alignment.weights, dict[str, None]()
    for mask in masks:
        with tqdm(
            total=total, unit="weight", unit_scale=True, desc=mask.name, file=sys.stderr
        ) as bar:
            VectorCache(cache_folder()).ensure(family, Method(mask=mask), bar.update)
        if mask.calibration != "fisher":  # which every tensor has
            notes[_note(family, mask)] = None
    notes[calibration_note(method for spec in specs for method in spec.methods)] = None
    for note in notes:
        say(note)
    files = {key: statistics.path for key, statistics in family.calibrations.items()}
    return Calibrated(files=files, notes=tuple(notes))


def _calibrated_masks(spec: Spec) -> list[MaskRule]:
    check_calibration(spec.methods, spec.experts, spec.tasks)
    # With one density for all experts each vector is there already: it is pruned alone.
    shared = replace(spec, space=spec.space.replace(density_shared=True))
    methods = Candidates.of(shared).all_methods()
    return [method.mask for method in methods if isinstance(method.mask, CALIBRATED)]


def _note(family: Family, mask: MaskRule) -> str:
    calibrations = family.calibrations_for(mask)
    other = [
        tensor
        for tensor in family.alignment.shared
        if not all(s.knows(tensor) for s in calibrations.values())
    ]
    share = sum(map(family.numel, other)) / family.alignment.weights
    return (
        f"{mask.name}: {len(other)} of {len(family.alignment.shared)} tensors ({share:.0%} of"
        f" the weights) are no linear layer's and are {mask.elsewhere}."
    )


def check_generation(spec: Spec, family: Family, *, is_here: bool = True) -> None:
    """Check that texts can be generated as a spec says.

    Args:
        spec: the study.
        family: its models.
        is_here: whether they are generated on this machine.

    Raises:
        ValueError: they cannot.

    """
    if spec.generator.engine == VLLM:
        check_vllm(spec.tasks, spec.dtype, family.base.folder, spec.device, is_here=is_here)


def check_groups(groups: Groups, tensors: Collection[str], *, is_whole: bool = True) -> None:
    """Check that groups of λ divide the merged tensors.

    Args:
        groups: the groups; none is right.
        tensors: names of the merged tensors.
        is_whole: whether these are known; if not, some of ``tensors`` may not be merged, and may be
            in no group.

    Raises:
        ValueError: a tensor is in no group, or a group has no tensor.

    """
    if slow := slow_pattern([pattern for _, pattern in groups], [*tensors]):
        raise ValueError(
            "space.lambda.groups: a regular expression must be searched for in seconds, but"
            f" {slow!r} is not"
        )
    used = set()
    for tensor in tensors if groups else ():
        try:
            used.add(group_of(groups, tensor))
        except ValueError as error:
            if is_whole:
                raise ValueError(
                    f"space.lambda.groups: {error}; a last group such as `other: .` takes the rest"
                ) from None
    for name, pattern in groups:
        if name not in used:
            raise ValueError(
                f"space.lambda.groups.{name}: a group must have tensors of its own, but got"
                f" {pattern!r}"
            )


def with_layers(spec: Spec, tensors: Collection[str]) -> Spec:
    """Return the spec with the number of the model's layers, if λ has anchors.

    Args:
        spec: the spec.
        tensors: names of the merged tensors.

    Raises:
        ValueError: no tensor is in a layer, there are more anchors than layers, or the spec says
            another number.

    """
    given = spec.space.lambda_
    if given.anchors is None:
        return spec
    layers = count_layers(tensors)
    if not layers:
        raise ValueError(
            "space.lambda.anchors: needs tensors in numbered layers, but these have none:"
            f" {', '.join([*tensors][:3])}"
        )
    if given.layers not in (None, layers):
        raise ValueError(
            f"space.lambda.layers: must be the model's number, {layers}, but got {given.layers}"
        )
    try:
        check_anchors(given.anchors, layers)
    except ValueError as error:
        raise ValueError(f"space.lambda: {error}") from None
    return replace(spec, space=spec.space.replace(lambda_=replace(given, layers=layers)))


def with_stack(spec: Spec, family: Family) -> Spec:
    """Return the spec with the number of the model's layers, if stacks of them are searched.

    Raises:
        ValueError: the layers cannot be stacked or scaled, are too many, or the spec says another
            number.

    """
    given = spec.space.stack
    if given is None:
        return spec
    try:
        layout = family.layout
        if given.scale is not None:
            _ = layout.branch_ends
    except ValueError as error:
        raise ValueError(f"space.stack: {str(error).removeprefix('stack: ')}") from None
    if given.layers not in (None, layout.count):
        raise ValueError(
            f"space.stack.layers: must be the model's number, {layout.count}, but got"
            f" {given.layers}"
        )
    stacks = replace(given, layers=layout.count)
    if (count := len(line_of(stacks, tuple(spec.experts)))) > MOST_LAYERS:
        raise ValueError(
            f"space.stack: {MOST_LAYERS} layers in line at most, but got {count}; see repeat and"
            " sources"
        )
    return replace(spec, space=spec.space.replace(stack=stacks))


def check_reachable(address: str) -> None:
    """Check that a Ray cluster answers at an address; Ray itself would wait without end.

    Raises:
        ValueError: the address is neither ``auto`` nor HOST:PORT.
        RuntimeError: no cluster answers there.

    """
    from cabs_search.cluster.driver import answers

    host, _, port = address.rpartition(":")
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address}: a driver must run on a machine of the cluster and join it by"
            " auto or HOST:PORT; from outside, send it there with `cabs-search submit`"
        )
    if address != "auto" and not (host and port.isdecimal() and int(port) < 1 << 16):
        raise ValueError(f"--address: auto or HOST:PORT is needed, but got {address}")
    if not answers(address):
        raise RuntimeError(f"--address {address}: no Ray cluster answers there")
