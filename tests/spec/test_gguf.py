"""GGUF files as base and experts: read once, kept by content, and named where it counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.cli.main import main
from cabs_search.spec import gguf as reading
from cabs_search.spec.gguf import gguf_of
from cabs_search.spec.locations import UnreachableError, cache_folder, locate
from tests.support.standins import make_tokenizer

CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "model.layers.0.input_layernorm.": "blk.0.attn_norm.",
    "model.layers.0.post_attention_layernorm.": "blk.0.ffn_norm.",
    "model.layers.0.self_attn.q_proj.": "blk.0.attn_q.",
    "model.layers.0.self_attn.k_proj.": "blk.0.attn_k.",
    "model.layers.0.self_attn.v_proj.": "blk.0.attn_v.",
    "model.layers.0.self_attn.o_proj.": "blk.0.attn_output.",
    "model.layers.0.mlp.gate_proj.": "blk.0.ffn_gate.",
    "model.layers.0.mlp.up_proj.": "blk.0.ffn_up.",
    "model.layers.0.mlp.down_proj.": "blk.0.ffn_down.",
}
"""Beginnings of names in a GGUF file, by those of transformers."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CABS_SEARCH_CACHE", str(tmp_path / "cache"))


def write_gguf(file: Path, seed: int) -> dict[str, torch.Tensor]:
    """Write a tiny Qwen2 with 8-bit matrices; return its weights, as transformers names them."""
    gguf: Any = pytest.importorskip("gguf", reason="pip install 'cabs-search[gguf]'")
    torch.manual_seed(seed)
    tokenizer = make_tokenizer("gpt2")
    config = transformers.Qwen2Config(**CONFIG, vocab_size=len(tokenizer))
    model: Any = transformers.Qwen2ForCausalLM(config)
    writer = gguf.GGUFWriter(file, "qwen2")
    writer.add_name("tiny")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokenizer))
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(content["vocab"], key=content["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    expected = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        (start,) = (ours for ours in NAMES if name.startswith(ours))
        values, kind = tensor.numpy(), gguf.GGMLQuantizationType.F32
        if tensor.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            values = gguf.quants.quantize(values, kind)
        expected[name] = torch.tensor(gguf.quants.dequantize(values, kind))
        writer.add_tensor(name.replace(start, NAMES[start]), values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected


def test_gguf_files_are_merged_and_the_card_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    start = write_gguf(tmp_path / "base" / "tiny.Q8_0.gguf", 0)
    tuned = write_gguf(tmp_path / "tuned.gguf", 1)
    folder = locate(str(tmp_path / "base"))
    assert folder == locate(str(tmp_path / "base" / "tiny.Q8_0.gguf"))
    assert folder.parent == cache_folder() / reading.FOLDER
    found = Checkpoint(folder)
    assert found.names == sorted(start)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in start.items())
    assert transformers.AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    options = ["--base", str(tmp_path / "base"), "--expert", f"a={tmp_path / 'tuned.gguf'}"]
    options += ["--method", "task-arithmetic", "--lambda", "a=0.5", "--to", str(tmp_path / "out")]
    assert main(["merge", *options]) == 0
    merged = Checkpoint(tmp_path / "out")
    for name, tensor in start.items():
        expected = tensor + 0.5 * (tuned[name] - tensor)
        assert torch.allclose(merged.read(name), expected, atol=1e-6), name
    card = (tmp_path / "out" / "README.md").read_text()
    assert "the base was quantized: its weights are those of tiny.Q8_0.gguf (F32, Q8_0)" in card
    assert "expert a was quantized: its weights are those of tuned.gguf" in card
    assert "--base tiny.Q8_0.gguf" in card

    def read_again(*_: Path) -> None:
        raise AssertionError("it is in the cache")

    monkeypatch.setattr(reading, "_convert", read_again)
    assert locate(str(tmp_path / "base")) == folder


def test_a_gguf_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match="model.gguf: no such file"):
        locate(str(file))
    with pytest.raises(ValueError, match="no such folder; it was made of a GGUF file: "):
        locate(str(cache_folder() / reading.FOLDER / "model-0123"))
    file.write_bytes(b"GGUF, but no more")
    monkeypatch.setattr(reading, "find_spec", lambda name: None if name == "gguf" else object())
    with pytest.raises(UnreachableError, match=r"needs gguf: pip install 'cabs-search\[gguf\]'"):
        locate(str(file))
    monkeypatch.setattr(reading, "find_spec", lambda _: object())
    with pytest.raises(ValueError, match="model.gguf: cannot be read as GGUF: ") as caught:
        locate(str(tmp_path))
    assert "\n" not in str(caught.value)
    assert not list((cache_folder() / reading.FOLDER).iterdir()), "nothing half made is left"


def test_the_only_gguf_file_of_a_folder_without_other_weights_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "a.gguf"
    assert gguf_of(tmp_path) is None
    file.touch()
    assert gguf_of(tmp_path) == file
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ValueError, match="holds 2 GGUF files, .* must be named: a.gguf, b.gguf"):
        gguf_of(tmp_path)
    (tmp_path / "model.safetensors").touch()
    assert gguf_of(tmp_path) is None
    assert gguf_of(file) == file
