"""Check a spec, its models, its items and its folder."""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from cabs_search.merging.cache import VectorCache
from cabs_search.merging.family import Family
from cabs_search.merging.masks.rules import CALIBRATED, Mask
from cabs_search.merging.recipe import Method, group_of
from cabs_search.record.folder import check_folder
from cabs_search.scoring.calibrate import calibrated, check_calibration
from cabs_search.scoring.models import check_heads, pick_device
from cabs_search.search.candidates import baselines, methods_of
from cabs_search.search.samplers.registry import find_sampler
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.tasks.load import load_study_items
from cabs_search.tracking.background import Say


def to_stderr(text: str) -> None:
    """Say something to the person who waits."""
    tqdm.write(text, file=sys.stderr)


class Prepared:
    """A spec seen to be right: its models, its items, its folder; nothing is written yet."""

    def __init__(
        self,
        spec: Spec | str | Path,
        output: str | Path | None,
        address: str | None,
        say: Say,
        over: Sequence[str] | None = None,
    ) -> None:
        self.say = say
        self.spec = spec = spec if isinstance(spec, Spec) else load(spec)
        self.folder = folder = Path(output) if output else Path("results") / spec.name
        if set("?%") & set(str(folder.absolute())):
            raise ValueError(
                f"{folder}: must have no ? and no % in its path, which mean something in a"
                " database's URL"
            )
        if address:
            check_reachable(address)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder}: must be a folder")
        check_folder(folder, spec, over)
        find_sampler(spec.search.sampler)
        say(f"checking {len(spec.experts)} experts and {len(spec.tasks)} tasks")
        self.family = Family.open(spec.base, spec.experts)
        check_heads(spec, self.family)
        check_groups(spec, self.family)
        self.items = load_study_items(spec)
        pick_device(spec.device)
        self.weights = {"base": self.family.base.fingerprint} | self.family.fingerprints
        self.notes: list[str] = []

    def prune_calibrated(self, *specs: Spec) -> dict[str, Path]:
        """Build the vectors of rules that need calibration items, which workers could not; files of
        the statistics.
        """
        needing: dict[Mask, None] = {}
        for spec in specs:
            alike = replace(
                spec, space=spec.space.but(density_shared=True)
            )  # has every vector, as each is alone
            methods = (*methods_of(alike), *(recipe.method for recipe in baselines(spec)))
            needing |= dict.fromkeys(m.mask for m in methods if isinstance(m.mask, CALIBRATED))
            check_calibration(spec)
        if not needing:
            return {}
        family = calibrated(self.spec, self.family, self.items["search"], needing)
        for mask in needing:
            total = family.alignment.weights
            with tqdm(
                total=total, unit="weight", unit_scale=True, desc=mask.name, file=sys.stderr
            ) as bar:
                VectorCache(cache_folder()).ensure(family, Method(mask=mask), bar.update)
            self._note(family, mask)
        return {expert: statistics.path for expert, statistics in family.calibrations.items()}

    def _note(self, family: Family, mask: Mask) -> None:
        other = {
            tensor
            for tensor in family.alignment.shared
            if not all(s.knows(tensor) for s in family.calibrations.values())
        }
        part = sum(family.numel(tensor) for tensor in other) / family.alignment.weights
        note = (
            f"{mask.name}: {len(other)} of {len(family.alignment.shared)} tensors ({part:.0%} of"
            " the weights) are no linear layer's and are pruned by magnitude."
        )
        if note not in self.notes:
            self.notes.append(note)
            self.say(note)


def check_groups(spec: Spec, family: Family) -> None:
    """Raises ValueError unless every merged tensor is in a group of λ and every group has a
    tensor.
    """
    groups = spec.space.groups
    if not groups:
        return
    try:
        used = {group_of(groups, tensor) for tensor in family.alignment.shared}
    except ValueError as error:
        raise ValueError(
            f"space.lambda.groups: {error}; a last group such as `other: .` takes the rest"
        ) from None
    for name, pattern in groups:
        if name not in used:
            raise ValueError(
                f"space.lambda.groups.{name}: a group must have tensors of its own, but got"
                f" {pattern!r}"
            )


def check_reachable(address: str) -> None:
    """Raises RuntimeError where nothing answers at HOST:PORT; Ray itself would wait for ever."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise RuntimeError(
                f"--address {address}: no Ray cluster answers there: {error}"
            ) from error
