"""Hypothesis strategies: valid inputs, changed at random; and the command that reads each."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support.hostile import (
    ADAPTER_CONFIG,
    ADAPTER_MODEL,
    INDEX,
    MODEL,
    RECORD,
    House,
    Verdict,
)

ODD: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 1.5, 2**31, 2**63, 2**64, -(10**30), 10**400),
    *(1e308, -0.0, float("nan"), float("inf"), float("-inf")),
    *("", " ", "nan", "1e999", "0x10", "a" * 300, "a" * 5000, "\0", "\x1b[31m", "é\u202e", "\n"),
    *("../..", "/etc/passwd", "~nobody/x", "a/b", "hub/id@main", "cache:../..", "package:os/x"),
    *("(", "*", "(a+)+$", "(.*)*x", ".", "3:32", "64:256", "all", "auto", "mood", "base"),
    *([], [[]], {}, {"a": {}}, [None], ["mood", "mood"], [1, "x", None], {"": ""}),
)
ODD_YAML = (
    *("&a [*a]", "*none", "!!python/object/apply:os.system ['touch canary']", "!!set {a, b}"),
    *("!!binary aGk=", "!!timestamp 2001-99-99", "<<: {a: b}", "? [a, b] : c", "{a: 1, a: 2}"),
    *("|", ">", "%YAML 9.9", "---", "...", "\t", "\0", "\ufeff", "1_000", "0o17", "1:2:3", "~"),
)
DTYPES = (*("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64"),)
RECIPES = (
    """
    {base: you/base, experts: {a: you/a, b: you/b}, method: cabs, nm: '64:256', order: [a, b],
     overlap: fill, tail: keep,
     groups: {mlp: mlp, rest: .}, lambda: {a: {mlp: 0.8, rest: 1.2}, b: 1}}
    """,
    """
    {base: you/base, experts: {a: you/a, b: you/b}, method: ties-magnitude, density: 0.5,
     dtype: float16, layers: 4, lambda: {a: [0.8, 1.2], b: 1.1}}
    """,
    """
    {merge_method: ties, base_model: you/base, dtype: bfloat16,
     models: [{model: you/a, parameters: {weight: 0.5, density: 0.4}},
              {model: you/b, parameters: {weight: [{filter: mlp, value: 1}, 0.2]}}],
     parameters: {normalize: true, int8_mask: false}}
    """,
    """
    {merge_method: passthrough,
     slices: [{sources: [{model: you/a, layer_range: [0, 3]}]},
              {sources: [{model: you/b, layer_range: [2, 4]}]}]}
    """,
)
"""Recipes of both forms: ours, then mergekit's."""
odd = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=12)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the paths of everything inside plain values."""
    found: list[tuple[Any, ...]] = []
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in inside:
        found.append((*path, key))
        if isinstance(inner, (dict, list)):
            found += places(inner, (*path, key))
    return found


@st.composite
def changed(draw: st.DrawFn, valid: Any) -> Any:
    """Put odd values in, take some out, rename keys, or move what stands elsewhere."""
    values = deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        if not (paths := places(values)):
            break
        *way, last = draw(st.sampled_from(paths))
        here = values
        for part in way:
            here = here[part]
        match draw(st.sampled_from(("odd", "odd", "odd", "gone", "moved", "renamed", "more"))):
            case "odd":
                here[last] = deepcopy(draw(odd))
            case "gone":
                del here[last]
            case "moved":
                source: Any = values
                for part in draw(st.sampled_from(paths)):
                    source = source[part] if _holds(source, part) else None
                here[last] = deepcopy(source)
            case "renamed" if isinstance(here, dict):
                here[draw(st.sampled_from(("", "x", "../x", "a" * 300, "\x1b", "base")))] = (
                    here.pop(last)
                )
            case "more" if isinstance(here[last], dict):
                here[last][draw(st.text(max_size=5))] = draw(odd)
            case _:
                pass
    return values


def _holds(value: Any, part: Any) -> bool:
    if isinstance(value, dict):
        return part in value
    return isinstance(value, list) and isinstance(part, int) and part < len(value)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes, snippets: tuple[bytes, ...] = ()) -> bytes:
    """Change, cut, repeat or insert some bytes."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(("set", "cut", "insert", "repeat", "remove"))):
            case "set" if data:
                data[at] = draw(st.integers(0, 255))
            case "cut":
                del data[at:]
            case "insert":
                new = st.binary(max_size=8)
                data[at:at] = draw(st.sampled_from(snippets) | new if snippets else new)
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
            case _:
                del data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


def dumped(values: Any) -> bytes:
    """Write JSON, also of values that are none."""
    return json.dumps(values).encode(errors="surrogatepass")


def json_of(path: Path) -> st.SearchStrategy[bytes]:
    """Return a JSON file's content, changed."""
    valid = path.read_bytes()
    snippets = (b"NaN", b"1e999", b"{", b"[" * 3000, b'"a":1,', b"\x00", b"\xff", b"9" * 5000)
    return changed(json.loads(valid)).map(dumped) | damaged(valid, snippets)


@st.composite
def safetensors_of(draw: st.DrawFn, path: Path) -> bytes:
    """Return a safetensors file, its header changed, or its weights."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if draw(st.integers(0, 3)) == 0:
        return draw(damaged(data))
    names = sorted(header.keys() - {"__metadata__"})
    for _ in range(draw(st.integers(1, 3))):
        tensor = header[draw(st.sampled_from(names))]
        match draw(st.sampled_from(("dtype", "shape", "offsets", "name", "any", "weights"))):
            case "dtype":
                tensor["dtype"] = draw(st.sampled_from(DTYPES))
            case "shape":
                sizes = st.sampled_from((0, 1, 2, 16, 2**31, 2**63, -1))
                tensor["shape"] = draw(st.lists(sizes, max_size=4))
            case "offsets":
                ends = st.sampled_from((0, 4, len(body), len(body) + 1, 2**40, 2**64, -4))
                tensor["data_offsets"] = draw(st.lists(ends, min_size=1, max_size=3))
            case "name":
                header[draw(st.text(max_size=8) | st.sampled_from(("a" * 600, "\x1b")))] = tensor
            case "any":
                header = draw(changed(header))
                names = sorted(header.keys() - {"__metadata__"})
                if not names or not all(isinstance(header[name], dict) for name in names):
                    break
            case _:
                at = 4 * draw(st.integers(0, len(body) // 4 - 1))
                weight = draw(st.sampled_from(("0000c07f", "0000807f", "ffff7f7f", "01000000")))
                body = body[:at] + bytes.fromhex(weight) + body[at + 4 :]
    text = dumped(header)
    length = draw(st.sampled_from((len(text),) * 8 + (0, len(text) - 1, 2**40, 2**64 - 1)))
    return length.to_bytes(8, "little") + text + body


def spec(house: House, command: str = "plan") -> st.SearchStrategy[Callable[[], Verdict]]:
    """Plan a changed spec, or give it to another command."""
    act = getattr(house, command)
    more = {"pickled": ["mood"], "seed": 1, "vocabulary": "same", "dtype": "float32"}
    values = house.values | more
    values["search"] = values["search"] | {"refine": {"steps": 3}, "objective": "mean"}
    text = yaml.safe_dump(house.values).encode()
    texts = st.one_of(
        changed(values).map(lambda v: yaml.safe_dump(v, sort_keys=False).encode()),
        changed(house.values).map(lambda v: yaml.safe_dump(v, sort_keys=False).encode()),
        damaged(text, tuple(one.encode() for one in ODD_YAML)),
    )
    return texts.map(lambda found: lambda: act(house.spec(found)))


def _merged(house: House, what: str, files: dict[str, bytes]) -> Verdict:
    folder = house.fresh(what)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if what == "base":
        return house.call(
            *("merge", "--base", folder, "--expert", f"mood={house.pico / 'mood'}"),
            *("--method", "task-arithmetic", "--to", house.out),
            named=("base", str(folder)),
        )
    return house.merge(folder)


def header(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Merge a model, or into a base, whose file of weights is changed."""

    def act(what: str) -> st.SearchStrategy[Callable[[], Verdict]]:
        files = safetensors_of(house.valid / what / MODEL)
        return files.map(lambda data: lambda: _merged(house, what, {MODEL: data}))

    return act("model") | act("base")


def index(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Merge a model in shards whose index is changed, or one of its configs."""
    return json_of(house.valid / "shards" / INDEX).map(
        lambda data: lambda: _merged(house, "shards", {INDEX: data})
    )


def config(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Merge a model whose config.json is changed."""
    return json_of(house.valid / "model" / "config.json").map(
        lambda data: lambda: _merged(house, "model", {"config.json": data})
    )


def adapter(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Merge an adapter whose settings or weights are changed."""
    folder = house.valid / "adapter"
    settings = json_of(folder / ADAPTER_CONFIG).map(lambda data: {ADAPTER_CONFIG: data})
    weights = safetensors_of(folder / ADAPTER_MODEL).map(lambda data: {ADAPTER_MODEL: data})
    return (settings | weights).map(lambda files: lambda: _merged(house, "adapter", files))


def notes(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Read a study's small files, changed: progress, versions, a recipe."""
    folder = house.valid / "study"

    def progress(data: bytes) -> Verdict:
        study = house.fresh("study")
        (study / "progress.json").write_bytes(data)
        return house.status(study)

    def recipe(data: bytes) -> Verdict:
        study = house.fresh("study")
        (study / "recipe.json").write_bytes(data)
        experts = [p for n in ("animal", "pair") for p in ("--expert", f"{n}={house.pico / n}")]
        base = ("--base", house.pico / "base", "--expert", f"mood={house.pico / 'mood'}")
        given = (*base, *experts, "--recipe", study / "recipe.json", "--to", house.out)
        return house.call("merge", *given, named=("recipe.json", "--expert"))

    return json_of(folder / "progress.json").map(lambda d: lambda: progress(d)) | json_of(
        folder / "recipe.json"
    ).map(lambda d: lambda: recipe(d))


def recipe(house: House) -> st.SearchStrategy[Callable[[], Verdict]]:
    """Convert a changed recipe file, or mergekit's, to either form."""

    def of(text: str) -> st.SearchStrategy[bytes]:
        valid = yaml.safe_load(text)
        snippets = tuple(one.encode() for one in ODD_YAML)
        values = changed(valid).map(lambda v: yaml.safe_dump(v, sort_keys=False).encode())
        return values | damaged(text.encode(), snippets)

    forms = st.sampled_from(("recipe", "mergekit"))
    return st.tuples(st.one_of(*map(of, RECIPES)), forms).map(
        lambda given: lambda: house.convert(*given)
    )


def record(house: House, command: str = "report") -> st.SearchStrategy[Callable[[], Verdict]]:
    """Report a study whose record, spec or versions are changed, or give it to another command."""
    act = getattr(house, command)
    valid = (house.valid / "study" / RECORD).read_bytes()
    tables = {
        "study": ("key", "value"),
        "search": ("key", "value"),
        "items": ("split", "task", "position", "item", "label"),
        "recipes": ("key", "recipe"),
        "blocks": ("recipe", "split", "block", "task", "scores", "losses", "predictions"),
        "spent": ("what", "amount"),
    }
    cells = [(table, column) for table, columns in tables.items() for column in columns]
    numbers = (None, -1, 2**62, 1e308, float("inf"))
    texts = ("", "x", "[]", "{}", "null", "[NaN]", b"\xff" * 12)
    value = st.sampled_from(numbers + texts) | st.binary(max_size=12)

    def bytewise(data: bytes) -> Verdict:
        study = house.fresh("study")
        (study / RECORD).write_bytes(data)
        return act(study)

    def cellwise(cell: tuple[str, str], new: Any, row: int) -> Verdict:
        study = house.fresh("study")
        table, column = cell
        with closing(sqlite3.connect(study / RECORD)) as db:
            rows = [r for (r,) in db.execute(f"SELECT rowid FROM {table} ORDER BY rowid")]
            chosen = rows[row % len(rows)]
            if new is None:
                db.execute(f"DELETE FROM {table} WHERE rowid = ?", (chosen,))
            else:
                query = f"UPDATE OR REPLACE {table} SET {column} = ? WHERE rowid = ?"
                db.execute(query, (new, chosen))
            db.commit()
        return act(study)

    def file(name: str, data: bytes) -> Verdict:
        study = house.fresh("study")
        (study / name).write_bytes(data)
        return act(study)

    folder = house.valid / "study"
    plain = yaml.safe_load((folder / "spec.yaml").read_text())
    specs = changed(plain).map(lambda v: yaml.safe_dump(v, sort_keys=False).encode())
    return st.one_of(
        st.tuples(st.sampled_from(cells), value, st.integers(0, 200)).map(
            lambda given: lambda: cellwise(*given)
        ),
        damaged(valid).map(lambda data: lambda: bytewise(data)),
        specs.map(lambda data: lambda: file("spec.yaml", data)),
        json_of(folder / "versions.json").map(lambda data: lambda: file("versions.json", data)),
    )


TARGETS: dict[str, Callable[[House], st.SearchStrategy[Callable[[], Verdict]]]] = {
    "spec": spec,
    "header": header,
    "index": index,
    "config": config,
    "adapter": adapter,
    "notes": notes,
    "record": record,
    "export": lambda house: record(house, "export"),
    "sample": lambda house: record(house, "sample"),
    "vectors": lambda house: spec(house, "vectors"),
    "recipe": recipe,
}
