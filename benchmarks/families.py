"""Models to measure on: the quickstart's, a BERT-base shape, and shapes of any size, all seeded."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from cabs_search.quickstart.experts import make
from cabs_search.spec.load import load
from cabs_search.spec.locations import cache_folder
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Split

STEP = 0.01
"""Size of the noise that makes an expert of a base."""
SHARD_BYTES = 1 << 30
HEAD = 128
"""Width of an attention head of Mistral-7B."""
Shapes = Mapping[str, tuple[int, ...]]


def quickstart(tasks: Iterable[str], items: int, **changes: Any) -> Spec:
    """The quickstart's spec with some of its experts, each with its task; ``changes`` are made to
    the tasks.
    """
    make()
    spec, chosen = load("quickstart"), tuple(tasks)
    search, confirm = Split(items=items), Split(items=8)
    orders = tuple(dict.fromkeys(tuple(e for e in order if e in chosen) for order in spec.orders))
    return replace(
        spec,
        name="bench",
        experts={name: spec.experts[name] for name in chosen},
        tasks={
            name: replace(spec.tasks[name], search=search, confirm=confirm, **changes)
            for name in chosen
        },
        space=spec.space.replace(order=orders),
        baselines={},
    )


def bert_base(experts: int = 3) -> tuple[Path, dict[str, Path]]:
    """Classifiers of BERT-base's shape (109.5 M weights) as random weights: base, experts.

    RoBERTa's class, whose names mergekit 0.1.5 merges; it stops at BERT's.
    """
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=30522, max_position_embeddings=512, type_vocab_size=2
    )
    return _random("bert-base", transformers.RobertaForSequenceClassification, config, experts)


def smollm2(tokenizer: Callable[[], Any], experts: int = 2) -> tuple[Path, dict[str, Path]]:
    """Language models of SmolLM2-135M's shape (134.5 M weights, tied) as random weights.

    Args:
        tokenizer: makes the tokenizer that is saved with the base.
        experts: how many beside the base.
    """
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    base, made = _random("smollm2-135m", transformers.LlamaForCausalLM, config, experts)
    tokenizer().save_pretrained(base)
    return base, made


def _random(name: str, kind: Any, config: Any, experts: int) -> tuple[Path, dict[str, Path]]:
    """A base of random weights and experts that moved away from it, kept for later runs."""
    root = cache_folder() / "bench" / name
    for i in range(experts + 1):
        own = f"expert{i}" if i else "base"
        if (root / own).is_dir():
            continue
        root.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        model = kind(config)
        torch.manual_seed(i)
        with torch.no_grad():
            for parameter in model.parameters() if i else ():
                parameter.add_(torch.randn_like(parameter), alpha=STEP)
        with tempfile.TemporaryDirectory(dir=root) as work:
            model.save_pretrained(Path(work) / own)
            (Path(work) / own).rename(root / own)
    return root / "base", {f"expert{i}": root / f"expert{i}" for i in range(1, experts + 1)}


def flat(weights: int) -> Shapes:
    """Shapes of so many weights in all, as matrices of 4 million weights at the most."""
    rows, width = weights // 1024, 1024
    most = 4096
    return {
        f"layer.{i}.weight": (min(most, rows - start), width)
        for i, start in enumerate(range(0, rows, most))
    }


def mistral(
    layers: int = 32,
    hidden: int = 4096,
    inner: int = 14336,
    pairs: int = 1024,
    vocabulary: int = 32000,
) -> Shapes:
    """Mistral-7B-v0.1's tensors: 7.24 billion weights with all 32 layers.

    ``pairs`` is the width of keys and of values.
    """
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for i in range(layers):
        at = f"model.layers.{i}"
        found |= {f"{at}.self_attn.{p}_proj.weight": (hidden, hidden) for p in "qo"}
        found |= {f"{at}.self_attn.{p}_proj.weight": (pairs, hidden) for p in "kv"}
        found |= {f"{at}.mlp.{p}_proj.weight": (inner, hidden) for p in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{at}.{p}_layernorm.weight": (hidden,) for p in ("input", "post_attention")}
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def mistral_config(shapes: Shapes) -> Any:
    """The configuration of a model of these shapes, with heads of Mistral-7B's width."""
    import transformers

    vocabulary, hidden = shapes["model.embed_tokens.weight"]
    inner, pairs = (
        shapes[f"model.layers.0.{name}_proj.weight"][0] for name in ("mlp.up", "self_attn.k")
    )
    return transformers.MistralConfig(
        architectures=["MistralForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=sum(name.endswith("q_proj.weight") for name in shapes),
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=pairs // HEAD,
        sliding_window=4096,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )


def numel(shapes: Shapes) -> int:
    """Weights in all."""
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def write(
    root: Path, shapes: Shapes, experts: int, dtype: torch.dtype, progress: Any = None
) -> tuple[Path, dict[str, Path]]:
    """Random base and experts of any shape, in shards, tensor by tensor, with memory for one shard
    of each.
    """
    names = ("base", *(f"expert{i}" for i in range(1, experts + 1)))
    writers = {name: _Shards(root / name) for name in names}
    pool = torch.randn(1 << 24, generator=torch.Generator().manual_seed(0))
    for place, (tensor, shape) in enumerate(shapes.items()):
        base = _noise(pool, shape, 7919 * place).mul_(2 * STEP)
        writers["base"].add(tensor, base.to(dtype))
        for i, name in enumerate(names[1:], 1):
            writers[name].add(
                tensor,
                base.add(_noise(pool, shape, 7919 * place + 104729 * i), alpha=STEP).to(dtype),
            )
        if progress:
            progress(base.numel())
    for writer in writers.values():
        writer.close()
    return root / "base", {name: root / name for name in names[1:]}


def _noise(pool: torch.Tensor, shape: tuple[int, ...], start: int) -> torch.Tensor:
    """The pool's normal numbers from a place of their own, over and over: 100 times as fast as to
    draw them.
    """
    wanted, out = torch.Size(shape).numel(), []
    start %= len(pool)
    while wanted:
        out.append(pool[start : start + wanted])
        wanted -= len(out[-1])
        start = (start + len(out[-1]) + 1) % len(pool)
    return torch.cat(out).reshape(shape)


class _Shards:
    """One checkpoint, written as a stream."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder, self._held, self._map = folder, dict[str, torch.Tensor](), dict[str, str]()
        self._count = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._held[name] = tensor
        if sum(t.nbytes for t in self._held.values()) >= SHARD_BYTES:
            self._flush()

    def _flush(self) -> None:
        self._count += 1
        file = f"model-{self._count:05}.safetensors"
        save_file(self._held, self._folder / file, {"format": "pt"})
        self._map |= dict.fromkeys(self._held, file)
        self._held = {}

    def close(self) -> None:
        if self._held:
            self._flush()
        index = {"metadata": {}, "weight_map": self._map}
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder on the cache's disk, removed at the end."""
    root = cache_folder() / "bench"
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix="scratch-") as folder:
        yield Path(folder)
