"""Bad checkpoints, indexes, configs, adapters and studies by name, and what the line must name."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.hostile.named_specs import Bad
from tests.support.hostile import (
    ADAPTER_CONFIG,
    ADAPTER_MODEL,
    CONFIG,
    INDEX,
    MODEL,
    RECORD,
    House,
    Verdict,
)

WEIGHT = "bert.pooler.dense.weight"
"""A tensor of 16 × 16 float32."""
BIN = "pytorch_model.bin"


def header(edit: Callable[[dict[str, Any]], Any], message: str = "cannot be read") -> Bad:
    """Merge a model whose safetensors header is changed."""

    def act(house: House) -> Verdict:
        path = house.fresh("model") / MODEL
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        values, body = json.loads(content[8 : 8 + size]), content[8 + size :]
        text = json.dumps(edit(values) or values).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + body)
        return house.merge(path.parent)

    return act, message


def weight(field: str, value: Any, message: str = "cannot be read") -> Bad:
    """Merge a model of which the header says something else of one tensor."""
    return header(lambda values: values[WEIGHT].update({field: value}), message)


def content(edit: Callable[[bytes], bytes], message: str = "cannot be read") -> Bad:
    """Merge a model whose file is changed byte by byte."""

    def act(house: House) -> Verdict:
        path = house.fresh("model") / MODEL
        path.write_bytes(edit(path.read_bytes()))
        return house.merge(path.parent)

    return act, message


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any], message: str, to: str = "model") -> Bad:
    """Merge a model, or an adapter, with other tensors."""

    def act(house: House) -> Verdict:
        path = house.fresh(to) / (MODEL if to == "model" else ADAPTER_MODEL)
        found = load_file(path)
        edit(found)
        path.unlink()
        save_file(found, path)
        return house.merge(path.parent)

    return act, message


def pickled(values: Any, message: str, *more: str) -> Bad:
    """Merge a model whose weights are a pickled file."""

    def act(house: House) -> Verdict:
        folder = house.fresh("model")
        found = values(load_file(folder / MODEL)) if callable(values) else values
        (folder / MODEL).unlink()
        if isinstance(found, bytes):
            (folder / BIN).write_bytes(found)
        else:
            torch.save(found, folder / BIN)
        return house.merge(folder, *more)

    return act, message


def index(edit: Callable[[dict[str, Any], Path], Any], message: str) -> Bad:
    """Merge a model in shards with another index."""

    def act(house: House) -> Verdict:
        path = house.fresh("shards") / INDEX
        values = json.loads(path.read_text())
        edited = edit(values, path.parent)
        new = values if edited is None else edited
        path.write_text(new if isinstance(new, str) else json.dumps(new))
        return house.merge(path.parent)

    return act, message


def shard(name: str, message: str = "must name files of its own folder") -> Bad:
    """Merge a model whose index names another file for a tensor."""
    return index(lambda values, _: values["weight_map"].update({WEIGHT: name}), message)


def put(folder: str, name: str, new: str | bytes, message: str, command: str = "merge") -> Bad:
    """Merge, or report, a folder in which a file is another one."""

    def act(house: House) -> Verdict:
        path = house.fresh(folder) / name
        path.write_bytes(new.encode() if isinstance(new, str) else new)
        verdict: Verdict = getattr(house, command)(house.work / folder)
        return verdict

    return act, message


def settings(folder: str, name: str, message: str, command: str = "merge", **fields: Any) -> Bad:
    """Merge, or report, a folder in which fields of a JSON file are others."""

    def act(house: House) -> Verdict:
        path = house.fresh(folder) / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))
        verdict: Verdict = getattr(house, command)(house.work / folder)
        return verdict

    return act, message


def config(field: str, value: Any, message: str = "") -> Bad:
    return settings("model", CONFIG, message or f"config.json: {field}: ", **{field: value})


def adapter(field: str, value: Any, message: str = "") -> Bad:
    return settings("adapter", ADAPTER_CONFIG, message or f"{field}: must be", **{field: value})


def sql(statement: str, message: str = "outcomes.sqlite: is damaged") -> Bad:
    """Report a study whose record is changed."""

    def act(house: House) -> Verdict:
        study = house.fresh("study")
        with closing(sqlite3.connect(study / RECORD)) as db:
            db.executescript(statement)
        return house.report(study)

    return act, message


def damaged(edit: Callable[[bytes], bytes], message: str = "outcomes.sqlite: ") -> Bad:
    """Report a study whose record is changed byte by byte."""

    def act(house: House) -> Verdict:
        path = house.fresh("study") / RECORD
        path.write_bytes(edit(path.read_bytes()))
        return house.report(path.parents[1])

    return act, message


def special(folder: str, name: str, make: Callable[[Path], Any], message: str) -> Bad:
    """Merge a folder in which a file is something else."""

    def act(house: House) -> Verdict:
        path = house.fresh(folder) / name
        path.unlink(missing_ok=True)
        make(path)
        return house.merge(path.parent)

    return act, message


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch canary",)


def sparse(size: int) -> Callable[[Path], None]:
    """Make a file of zeros that takes no room."""
    return lambda path: (path.touch(), os.truncate(path, size))[0]


FINITE = "every weight must be finite"
CHECKPOINTS: dict[str, Bad] = {
    "offsets beyond the end": weight("data_offsets", [0, 2**40]),
    "offsets below 0": weight("data_offsets", [-4, 0]),
    "offsets that end before they begin": weight("data_offsets", [1024, 0]),
    "offsets of another tensor": weight("data_offsets", [0, 1024]),
    "offsets of 2^64": weight("data_offsets", [2**64, 2**65]),
    "one offset": weight("data_offsets", [0]),
    "offsets of texts": weight("data_offsets", ["0", "4"]),
    "more rows than bytes": weight("shape", [17, 16]),
    "fewer rows than bytes": weight("shape", [15, 16]),
    "a shape that overflows": weight("shape", [2**40, 2**40]),
    "a shape below 0": weight("shape", [-16, -16]),
    "a shape of a text": weight("shape", "16"),
    "a shape that is another's": weight("shape", [256], "must have the base's shape, but pooler"),
    "a dtype of other size": weight("dtype", "F16"),
    "an unknown dtype": weight("dtype", "F31"),
    "integers for floats": weight("dtype", "I32", "pooler.dense.weight is an integer"),
    "a tensor without a dtype": header(lambda v: v[WEIGHT].pop("dtype")),
    "a header of a list": header(lambda _: [1]),
    "a header of nothing": header(lambda _: {"a": None}),
    "two tensors of the same bytes": header(lambda v: v.update(copy=v[WEIGHT])),
    "a long name": tensors(lambda t: t.update({"a" * 501: torch.ones(1)}), "at most 500"),
    "a control character": tensors(lambda t: t.update({"a\x1b": torch.ones(1)}), "printable"),
    "a file of nothing": content(lambda _: b""),
    "a cut header": content(lambda b: b[:20]),
    "cut weights": content(lambda b: b[:-1]),
    "more than the weights": content(lambda b: b + b"\0"),
    "a header of 2^63 bytes": content(lambda b: (2**63).to_bytes(8, "little") + b[8:]),
    "a header of no bytes": content(lambda b: bytes(8) + b[8:]),
    "no safetensors": content(lambda _: b"version https://git-lfs.github.com/spec/v1\n"),
    "NaN": tensors(lambda t: t[WEIGHT].fill_(float("nan")), FINITE),
    "infinity": tensors(lambda t: t[WEIGHT].fill_(float("inf")), FINITE),
    "minus infinity": tensors(lambda t: t[WEIGHT][0].fill_(float("-inf")), FINITE),
    "float8": tensors(
        lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.float8_e4m3fn)}), "16 bits or more"
    ),
    "the other float8": tensors(
        lambda t: t.update({WEIGHT: t[WEIGHT].to(torch.float8_e5m2)}), "16 bits or more"
    ),
    "integers": tensors(lambda t: t.update({WEIGHT: t[WEIGHT].long()}), "is an integer in"),
    "no tensors": tensors(lambda t: t.clear(), "holds no tensors"),
    "a tensor less": tensors(lambda t: t.pop(WEIGHT), "has no pooler.dense.weight"),
    "a tensor twice": tensors(
        lambda t: t.update({"pooler.dense.weight": t[WEIGHT].clone()}), "twice"
    ),
    "weights that are a pipe": special("model", MODEL, os.mkfifo, "holds neither"),
    "weights that are a folder": special("model", MODEL, Path.mkdir, "holds neither"),
    "weights that are zeros": special("model", MODEL, sparse(1 << 34), "cannot be read"),
    "weights that link to themselves": special(
        "model", MODEL, lambda path: path.symlink_to(path), "experts.mood"
    ),
}
PICKLES: dict[str, Bad] = {
    "a pickle that is not allowed": pickled(lambda t: t, "is a pickled file, which is read only"),
    "a pickle of another model": pickled(lambda t: t, "is a pickled file", "--pickled", "base"),
    "a pickle that runs": pickled({"a": Payload()}, "cannot be read", "--pickled", "mood"),
    "a bare pickle that runs": pickled(
        pickle.dumps(Payload()), "cannot be read", "--pickled", "mood"
    ),
    "a pickle of a list": pickled([1], "must hold tensors by name", "--pickled", "mood"),
    "a pickle of numbers": pickled({"a": 1}, "but 'a' is int", "--pickled", "mood"),
    "a pickle of numbered tensors": pickled(
        {1: torch.ones(1)}, "must hold tensors by name", "--pickled", "mood"
    ),
    "a pickle of nested tensors": pickled(
        lambda t: {"state_dict": t}, "but 'state_dict' is dict", "--pickled", "mood"
    ),
    "a pickle of a huge tensor": pickled(
        {"a": torch.ones(1).expand(10**12)}, "must be in the file", "--pickled", "mood"
    ),
    "a pickle of a sparse tensor": pickled(
        {"a": torch.ones(4).to_sparse()}, "must be in the file", "--pickled", "mood"
    ),
    "a pickle of no bytes": pickled(b"", "cannot be read", "--pickled", "mood"),
    "a cut pickle": pickled(b"PK\x03\x04" + bytes(99), "cannot be read", "--pickled", "mood"),
}
INDEXES: dict[str, Bad] = {
    "a shard above": shard("../model/model.safetensors"),
    "a shard at a path": shard("/etc/passwd"),
    "a shard below": shard("x/part0.safetensors"),
    "a shard of dots": shard(".."),
    "a shard of no name": shard(""),
    "a shard of a number": index(
        lambda v, _: v["weight_map"].update({WEIGHT: 7}), "must name files of its own folder"
    ),
    "a shard that is a pickle": shard(BIN),
    "a shard that is not there": shard("part9.safetensors", "part9.safetensors: no such file"),
    "a shard with a long name": shard("a" * 300 + ".safetensors", "experts.mood"),
    "a shard with a null": shard("a\0.safetensors", "no such file"),
    "a shard that is a pipe": index(
        lambda v, folder: (
            os.mkfifo(folder / "p.safetensors"),
            v["weight_map"].update({WEIGHT: "p.safetensors"}),
        )[1],
        "p.safetensors: no such file",
    ),
    "a shard that links to zeros": index(
        lambda v, folder: (
            (folder / "z.safetensors").symlink_to("/dev/zero"),
            v["weight_map"].update({WEIGHT: "z.safetensors"}),
        )[1],
        "z.safetensors: no such file",
    ),
    "a shard twice": index(
        lambda v, folder: (
            (
                (folder / "b.safetensors").write_bytes((folder / "part0.safetensors").read_bytes()),
                v["weight_map"].update({WEIGHT: "b.safetensors"}),
            )[0]
            and None
        ),
        "which",
    ),
    "an index without a map": index(lambda _v, _: {"a": 1}, "weight_map: names no files"),
    "an empty map": index(lambda _v, _: {"weight_map": {}}, "weight_map: names no files"),
    "a list for a map": index(lambda _v, _: {"weight_map": ["a"]}, "weight_map: names no files"),
    "an index of a list": index(lambda _v, _: "[]", "must hold a JSON object, but got list"),
    "an index of no JSON": index(lambda _v, _: "{", "index.json: cannot be read"),
    "a deep index": index(lambda _v, _: "[" * 99_999, "index.json: cannot be read"),
    "a huge number": index(lambda _v, _: '{"weight_map": ' + "9" * 5000 + "}", "cannot be read"),
    "a large index": special("shards", INDEX, sparse(49 << 20), "it must have 48 MiB at most"),
}
CONFIGS: dict[str, Bad] = {
    "a config of a list": put("model", CONFIG, "[]", "must hold a JSON object, but got list"),
    "a config of no JSON": put("model", CONFIG, "{", "config.json: cannot be read"),
    "a large config": special("model", CONFIG, sparse(49 << 20), "48 MiB at most"),
    "architectures of a number": config("architectures", 7),
    "rope of a list": config("rope_parameters", [1]),
    "rope scaling of a text": config("rope_scaling", "x"),
    "classes of a list": config("id2label", ["a"]),
    "a type of a number": config("model_type", 3),
    "a billion layers": config("num_hidden_layers", 10**9),
    "a billion classes": config("num_labels", 10**9),
    "a billion positions": config("max_position_embeddings", 10**12),
    "a vocabulary of a text": config("vocab_size", "x"),
    "another size": config("hidden_size", 99, "hidden_size is 99 against 16"),
    "quantized weights": config("quantization_config", {"a": 1}, "must not be quantized"),
    "a type of its own with code": settings(
        "model", CONFIG, "model_type is", model_type="evil", auto_map={"AutoConfig": "evil.Evil"}
    ),
}
ADAPTERS: dict[str, Bad] = {
    "settings of a list": put("adapter", ADAPTER_CONFIG, "[]", "must hold a JSON object"),
    "settings of no JSON": put("adapter", ADAPTER_CONFIG, "{", "cannot be read"),
    "another type": adapter("peft_type", "IA3"),
    "a type of a list": adapter("peft_type", []),
    "no rank": adapter("r", None),
    "rank 0": adapter("r", 0),
    "a rank below 0": adapter("r", -2),
    "a rank of NaN": adapter("r", float("nan")),
    "half a rank": adapter("r", 2.5),
    "a rank of yes": adapter("r", True),
    "another rank": adapter("r", 3, "two matrices of rank 3"),
    "α of 0": adapter("lora_alpha", 0),
    "α of NaN": adapter("lora_alpha", float("nan")),
    "infinite α": adapter("lora_alpha", float("inf")),
    "α of a text": adapter("lora_alpha", "x"),
    "huge α": adapter("lora_alpha", 1e308),
    "α of 400 digits": adapter("lora_alpha", 10**400),
    "ranks of a list": adapter("rank_pattern", [1], "rank_pattern: must hold numbers"),
    "a pattern of no rank": adapter("rank_pattern", {"key": "x"}, "rank_pattern.key: must be"),
    "a pattern that is none": adapter("rank_pattern", {"(": 2}, "is no regular expression"),
    "a pattern of flags": adapter("alpha_pattern", {"(?i)x": 2}, "is no regular expression"),
    "rsLoRA as a text": adapter("use_rslora", "yes"),
    "modules as a text": adapter("modules_to_save", "x"),
    "a mapping of a list": adapter("auto_mapping", [1]),
    "weights moved before": adapter("init_lora_weights", "pissa"),
    "magnitudes that are not there": adapter("use_dora", True, "must have lora_A.weight, lora_B"),
    "adapter of no weights": special("adapter", ADAPTER_MODEL, sparse(0), "cannot be read"),
    "adapter without weights": special("adapter", ADAPTER_MODEL, lambda _: None, "holds neither"),
    "half of a pair": tensors(lambda t: t.pop(min(t)), "must have lora_A.weight", "adapter"),
    "NaN in an adapter": tensors(
        lambda t: t[min(t)].fill_(float("nan")), "must be finite", "adapter"
    ),
    "float8 in an adapter": tensors(
        lambda t: t.update({min(t): t[min(t)].to(torch.float8_e4m3fn)}), "16 bits", "adapter"
    ),
    "an update of one dimension": tensors(
        lambda t: t.update({min(t): torch.ones(2)}), "two matrices of rank 2", "adapter"
    ),
}
NEWS, VERSIONS = "progress.json", "versions.json"
STUDIES: dict[str, Bad] = {
    "a record of nothing": damaged(lambda _: b"", "outcomes.sqlite: "),
    "a record that is none": damaged(lambda _: b"x" * 9000),
    "a cut record": damaged(lambda b: b[: len(b) // 2]),
    "a record with holes": damaged(lambda b: b[:4096] + bytes(len(b) - 4096)),
    "a record of another form": sql("PRAGMA user_version = 99", "must have form 2, but got 99"),
    "a table less": sql("DROP TABLE items", "outcomes.sqlite: "),
    "a column less": sql("ALTER TABLE blocks DROP COLUMN losses"),
    "recipes of no JSON": sql("UPDATE recipes SET recipe = 'x'"),
    "recipes of a list": sql("UPDATE recipes SET recipe = '[]'"),
    "recipes lost": sql("DELETE FROM recipes"),
    "labels of no JSON": sql("UPDATE items SET label = 'x'"),
    "labels of a mapping": sql("UPDATE items SET label = '{}'"),
    "labels lost": sql("DELETE FROM items WHERE task = 'mood'"),
    "half a score": sql("UPDATE blocks SET scores = x'00'"),
    "a score too many": sql("UPDATE blocks SET scores = x'0000000000000000'"),
    "predictions of no list": sql("UPDATE blocks SET predictions = '7'"),
    "no groups": sql("UPDATE search SET value = '[]' WHERE key LIKE '% groups of %'"),
    "huge groups": sql("UPDATE search SET value = '[99999999999]' WHERE key LIKE '% groups of %'"),
    "news of an unknown unit": settings(
        "study",
        NEWS,
        "spent.0.unit: Input",
        "status",
        spent=[{"unit": "x", "spent": 1, "limit": 2}],
    ),
    "amounts of texts": sql("UPDATE spent SET amount = 'x'"),
    "infinite amounts": sql("UPDATE spent SET amount = 9e999"),
    "a spec of no mapping": put("study", "spec.yaml", "[]", "must be a mapping", "report"),
    "a spec of tags": put("study", "spec.yaml", "!!python/name:os.x", "cannot be read", "report"),
    "versions of no JSON": put("study", VERSIONS, "{", "versions.json: cannot be", "report"),
    "versions of numbers": put("study", VERSIONS, "[1]", "versions.json: cannot be", "report"),
    "versions of lists": put("study", VERSIONS, '[{"a": []}]', "must be a text", "report"),
    "news of no JSON": put("study", NEWS, "{", "progress.json: cannot be read", "status"),
    "news of a list": put("study", NEWS, "[]", "progress.json: cannot be read", "status"),
    "deep news": put("study", NEWS, "[" * 99_999, "progress.json: cannot be read", "status"),
    "news of texts": settings("study", NEWS, "candidates: Input", "status", candidates="x"),
    "news of another state": settings("study", NEWS, "state: Input", "status", state="x"),
    "news of infinity": settings("study", NEWS, "finite", "status", noted=float("inf")),
    "news of NaN": settings("study", NEWS, "finite", "status", seconds_left=float("nan")),
    "news of odd shares": settings("study", NEWS, "spent.0", "status", spent=[{"x": 1}]),
    "a comparison of nothing": put(
        "study", "comparison.yaml", "x", "a spec must be a mapping", "report"
    ),
    "a comparison of lists": put(
        "study", "comparison.yaml", "spec: []", "spec, over, failures and notes", "report"
    ),
}
