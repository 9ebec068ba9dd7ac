"""Shared tensors and heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cabs_search.checkpoints.alignment import align, trunk_prefix
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.task_vector import task_vector
from tests.conftest import EXPERTS, make_base, make_expert


def test_experts_answer_to_the_bases_names(pico: Path) -> None:
    base = Checkpoint(pico / "base")
    experts = {name: Checkpoint(pico / name, base=base) for name in EXPERTS}
    found = align(base, experts)
    assert set(found.shared) == set(base.names)
    assert all(head == ("classifier.bias", "classifier.weight") for head in found.heads.values())
    assert (
        experts["mood"].model_name("encoder.layer.0.output.dense.bias")
        == "bert.encoder.layer.0.output.dense.bias"
    )
    assert not task_vector(base, experts["mood"], "embeddings.word_embeddings.weight").whole().any()
    assert task_vector(base, experts["mood"], "pooler.dense.weight").whole().all()


def test_a_bare_expert_of_a_prefixed_base(pico: Path) -> None:
    base = Checkpoint(pico / "mood")
    expert = Checkpoint(pico / "base", base=base)
    assert len(set(base.names) & set(expert.names)) == len(expert.names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 against 2"),
        ({"hidden_size": 32}, "hidden_size is 32 against 16"),
        ({"vocab_size": 99}, "vocab_size is 99 against 20"),
    ],
)
def test_another_architecture_is_refused(
    pico: Path, tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    odd = make_expert(tmp_path / "odd", make_base(tmp_path / "other", **changes), 1, 2)
    base = Checkpoint(pico / "base")
    with pytest.raises(ValueError, match=f"experts.odd: .*{message}"):
        align(base, {"odd": Checkpoint(odd, base=base)})


def test_another_shape_is_refused(pico: Path, tmp_path: Path) -> None:
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["bert.embeddings.position_embeddings.weight"] = torch.zeros(64, 16)
    save_file(tensors, tmp_path / "model.safetensors")
    base = Checkpoint(pico / "base")
    with pytest.raises(
        ValueError,
        match=r"experts.odd: .*position_embeddings.weight is \(64, 16\) against \(32, 16\)",
    ):
        align(base, {"odd": Checkpoint(tmp_path, base=base)})


def test_a_stranger_is_refused(pico: Path, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "model.safetensors")
    base = Checkpoint(pico / "base")
    with pytest.raises(ValueError, match="must share most of the base's weights"):
        align(base, {"odd": Checkpoint(tmp_path, base=base)})


def test_a_buffer_that_is_no_float_in_an_expert_is_not_shared(pico: Path, tmp_path: Path) -> None:
    for name, mask in (("base", torch.ones(4)), ("mood", torch.ones(4, dtype=torch.uint8))):
        tensors = load_file(pico / name / "model.safetensors")
        prefix = "bert." if name == "mood" else ""
        (tmp_path / name).mkdir()
        save_file(tensors | {f"{prefix}encoder.mask": mask}, tmp_path / name / "model.safetensors")
    base = Checkpoint(tmp_path / "base")
    found = align(base, {"mood": Checkpoint(tmp_path / "mood", base=base)})
    assert "encoder.mask" not in found.shared


@pytest.mark.parametrize("labels", [3, 2])
def test_the_head_of_a_base_that_is_a_classifier_is_not_merged(
    pico: Path, tmp_path: Path, labels: int
) -> None:
    base = Checkpoint(make_expert(tmp_path / "tuned", pico / "base", 7, labels))
    experts = {name: Checkpoint(pico / name, base=base) for name in ("mood", "pair")}
    found = align(base, experts)
    assert set(found.shared) == {f"bert.{name}" for name in Checkpoint(pico / "base").names}
    assert found.heads == dict.fromkeys(experts, ("classifier.bias", "classifier.weight"))


def test_a_trunk_of_another_shape_is_refused_beside_a_head_of_the_base(
    pico: Path, tmp_path: Path
) -> None:
    base = Checkpoint(make_expert(tmp_path / "tuned", pico / "base", 7, 3))
    tensors = load_file(pico / "mood" / "model.safetensors")
    tensors["bert.pooler.dense.bias"] = torch.zeros(8)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"experts.odd: .*pooler.dense.bias is \(8,\) against"):
        align(base, {"odd": Checkpoint(tmp_path, base=base)})


SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 60}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 60}
LLAMA = SIZE | {"intermediate_size": 32, "num_key_value_heads": 2}
PREFIXES = [
    ("Bert", "ForSequenceClassification", SIZE, "bert."),
    ("Bert", "ForQuestionAnswering", SIZE, "bert."),
    ("Roberta", "ForSequenceClassification", SIZE, "roberta."),
    ("DistilBert", "ForSequenceClassification", DISTIL, "distilbert."),
    ("DebertaV2", "ForTokenClassification", SIZE, "deberta."),
    ("ModernBert", "ForSequenceClassification", SIZE | {"intermediate_size": 32}, "model."),
    ("GPT2", "ForSequenceClassification", GPT2, "transformer."),
    ("Llama", "ForSequenceClassification", LLAMA, "model."),
    ("Bert", "Model", SIZE, ""),
    ("Bert", "Model", SIZE | {"vocab_size": 9000}, ""),
    ("DistilBert", "Model", DISTIL, ""),
    ("DebertaV2", "Model", SIZE | {"relative_attention": True}, ""),
    ("ModernBert", "Model", SIZE | {"intermediate_size": 32}, ""),
    ("GPT2", "Model", GPT2, ""),
    ("Llama", "Model", LLAMA, ""),
    ("Llama", "ForCausalLM", LLAMA, ""),
    ("Bert", "ForMaskedLM", SIZE, ""),
]


@pytest.mark.parametrize(("family", "model", "settings", "prefix"), PREFIXES)
def test_the_trunk_is_told_from_a_head_by_names(
    tmp_path: Path, family: str, model: str, settings: dict[str, int], prefix: str
) -> None:
    """A language model's output layer is merged with its trunk."""
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1}
    config = getattr(transformers, f"{family}Config")(**settings, **marks, sep_token_id=2)
    getattr(transformers, f"{family}{model}")(config).save_pretrained(tmp_path)
    assert trunk_prefix(Checkpoint(tmp_path)) == prefix


def test_an_expert_may_lack_a_module_but_no_part_of_one(pico: Path, tmp_path: Path) -> None:
    base = Checkpoint(pico / "base")
    tensors = load_file(pico / "mood" / "model.safetensors")
    headless = {name: t for name, t in tensors.items() if "pooler" not in name}
    for folder, kept in (("whole", headless), ("lacking", dict(headless))):
        if folder == "lacking":
            del kept["bert.encoder.layer.1.output.dense.bias"]
        (tmp_path / folder).mkdir()
        save_file(kept, tmp_path / folder / "model.safetensors")
    found = align(base, {"mood": Checkpoint(tmp_path / "whole", base=base)})
    assert not any(name.startswith("pooler") for name in found.shared)
    with pytest.raises(ValueError, match=r"experts\.mood: .* has no encoder\.layer\.1\.output"):
        align(base, {"mood": Checkpoint(tmp_path / "lacking", base=base)})
