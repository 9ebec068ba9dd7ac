"""Bytes that each node of a cluster holds for a search, and those that travel there."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from cabs_search.common.formats import show_bytes
from cabs_search.merging.recipe import BASE
from cabs_search.spec.load import find_spec_file, load_plain
from cabs_search.spec.locations import as_path, files_of, is_hub_id
from cabs_search.spec.study import Spec
from cabs_search.workflows.package import bytes_of, data_files
from cabs_search.workflows.sizes import Entry


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Bytes on nodes of a cluster."""

    models: Mapping[str, int | None]
    """Bytes of the base's files and of each expert's; None: not at hand, so unknown."""
    from_hub: tuple[str, ...]
    """Models that the driver's node downloads from the hub."""
    vectors: int | None
    """Estimated bytes of all vectors; None: unknown."""
    vectors_sent: int | None
    """Bytes of vectors that a node gets from the driver's cache, if that is as the one here."""
    data: Mapping[str, int]
    """Bytes of each file or folder that tasks read and ``submit`` sends to the head node."""

    @property
    def held(self) -> int | None:
        """Bytes that a node holds, at most; None: unknown."""
        return _total([*self.models.values(), self.vectors])

    @property
    def sent(self) -> int | None:
        """Bytes that travel to a node that has nothing, beside the tokenized items."""
        return _total([*self.models.values(), self.vectors_sent])

    def as_dict(self) -> dict[str, object]:
        """Return plain values for JSON."""
        return {
            "models": dict(self.models),
            "from_hub": list(self.from_hub),
            "vectors": self.vectors,
            "vectors_sent": self.vectors_sent,
            "held": self.held,
            "sent": self.sent,
            "data": dict(self.data),
            "submitted": sum(self.data.values()),
        }

    def rows(self) -> list[tuple[str, str]]:
        """Return rows of a table; what is unknown altogether has none."""
        count = f"{len(self.data) or 'no'} data file{'' if len(self.data) == 1 else 's'}"
        size = f" ({show_bytes(sum(self.data.values()))})" if self.data else ""
        submitted = f"{count}{size}, and no model"
        if self.from_hub:
            submitted += f"; the head node downloads {', '.join(self.from_hub)}, once"
        rows = [("submit sends", submitted)]
        if any(size is not None for size in self.models.values()):
            parts = [f"{name} {_shown(size)}" for name, size in self.models.items()]
            parts.append(f"vectors {_shown(self.vectors)}")
            total = "unknown in all" if self.held is None else f"{show_bytes(self.held)} at most"
            rows.append(("a cluster's node", f"{total}: {', '.join(parts)}"))
        if self.sent is not None:
            sent = (
                f"{show_bytes(self.sent)}: models that it has not at the same path, and vectors of"
                f" the driver's cache (in the one here {_shown(self.vectors_sent)}); others are"
                " built there"
            )
            rows.append(("travels to a node", sent))
        return rows


def nodes_of(
    path: str | Path, spec: Spec, missing: Collection[str], entries: Mapping[Entry, int] | None
) -> Nodes:
    """Count what a cluster's nodes hold.

    Args:
        path: the spec's file, or the name of one that ships.
        spec: the spec in it, with absolute locations.
        missing: fields of models that are not at hand.
        entries: estimated bytes of each vector; None: unknown.

    """
    values, folder = load_plain(path), find_spec_file(path).parent
    given = {BASE: values["base"], **values["experts"]}
    located = {BASE: spec.base, **spec.experts}
    fields = {name: name if name == BASE else f"experts.{name}" for name in located}
    models = {
        name: None if fields[name] in missing else _size(Path(at)) for name, at in located.items()
    }
    # what needs calibration items is pruned by the driver alone, so that its cache has it
    sent = [size for at, size in (entries or {}).items() if not isinstance(at, Path) or at.exists()]
    return Nodes(
        models=models,
        from_hub=tuple(n for n, text in given.items() if is_hub_id(text, folder / as_path(text))),
        vectors=None if entries is None else sum(entries.values()),
        vectors_sent=None if entries is None else sum(sent),
        data={str(source): bytes_of(source) for source in data_files(path)},
    )


def _size(model: Path) -> int:
    return sum(file.stat().st_size for file in files_of(model))


def _total(sizes: Collection[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _shown(size: int | None) -> str:
    return "unknown" if size is None else show_bytes(size)
