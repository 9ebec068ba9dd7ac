"""Adapters as experts: τ is what PEFT makes of them, and what cannot be an expert says why."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file, save_file

from cabs_search.checkpoints.adapter import Adapter, open_expert
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.merging.family import Family
from tests.support.adapters import adapt, merged

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 30,
}
MARKS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 30} | MARKS
LLAMA = SMALL | MARKS | {"num_key_value_heads": 2}
Tensors = dict[str, torch.Tensor]


def make_model(family: str, head: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"GPT2": GPT2, "Llama": LLAMA, "Bert": SMALL}[family]
    config = getattr(transformers, f"{family}Config")(**sizes | settings)
    return getattr(transformers, f"{family}{head}")(config)


def tensors_of(model: Any) -> Tensors:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def change(folder: Path, edit: Callable[[Any, Tensors], Any]) -> Path:
    """Change an adapter's settings and tensors."""
    settings, file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    values, tensors = json.loads(settings.read_text()), load_file(file)
    edit(values, tensors)
    settings.write_text(json.dumps(values))
    save_file(tensors, file)
    return folder


LAYERS = ["query", "dense"]
HEAD = {"task_type": "SEQ_CLS"}
ADAPTERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "LoRA": ("Bert", "ForSequenceClassification", HEAD | {"target_modules": LAYERS}),
    "rsLoRA": ("Bert", "Model", {"target_modules": LAYERS, "use_rslora": True}),
    "DoRA": ("Bert", "Model", {"target_modules": [*LAYERS, "word_embeddings"], "use_dora": True}),
    "rank and alpha patterns": (
        "Bert",
        "Model",
        {
            "target_modules": LAYERS,
            "rank_pattern": {r"^encoder.layer.0.attention.self.query": 2, "output.dense": 3},
            "alpha_pattern": {"dense": 2, r"layer\.1\.attention\.self\.query": 11},
        },
    ),
    "embeddings": (
        "Llama",
        "ForCausalLM",
        {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    ),
    "fan_in_fan_out": (
        "GPT2",
        "LMHeadModel",
        {"task_type": "CAUSAL_LM", "target_modules": ["c_attn", "c_proj"]},
    ),
    "fan_in_fan_out, square": (
        "GPT2",
        "LMHeadModel",
        {"target_modules": r".*attn\.c_proj", "use_dora": True},
    ),
    "modules_to_save": (
        "Llama",
        "ForCausalLM",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "biases": (
        "Bert",
        "ForSequenceClassification",
        HEAD | {"target_modules": LAYERS, "bias": "all"},
    ),
    "LoRA's bias": ("Bert", "Model", {"target_modules": LAYERS, "lora_bias": True}),
    "MiCA": ("Llama", "ForCausalLM", {"target_modules": ["v_proj"], "init_lora_weights": "mica"}),
}


@pytest.mark.parametrize(("family", "head", "settings"), ADAPTERS.values(), ids=ADAPTERS.keys())
def test_a_task_vector_is_what_peft_adds(
    tmp_path: Path, family: str, head: str, settings: dict[str, Any]
) -> None:
    model = make_model(family, head)
    model.save_pretrained(tmp_path / "base")
    start = tensors_of(model)
    end = tensors_of(merged(adapt(model, tmp_path / "a", **settings)))
    opened = Family.open(tmp_path / "base", {"a": tmp_path / "a"})
    expert = opened.experts["a"]
    changed = 0
    for name in opened.base.names:
        expected = end[name] - start[name]
        changed += bool(expected.any())
        if name in opened.alignment.shapes:
            assert opened.delta(name, "a") == pytest.approx(expected, abs=1e-6), name
        assert expert.read(name) == pytest.approx(end[name], abs=1e-6), name
    assert changed >= 2


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare base and a classifier adapted from it, with a head of 3 classes."""
    root = tmp_path_factory.mktemp("adapted")
    make_model("Bert", "Model").save_pretrained(root / "base")
    model = transformers.BertForSequenceClassification.from_pretrained(root / "base", num_labels=3)
    adapt(model, root / "a", **HEAD, target_modules=LAYERS)
    return root


def copied(adapted: Path, to: Path) -> Path:
    return Path(shutil.copytree(adapted / "a", to / "a"))


def test_an_adapter_with_a_head_reads_as_a_whole_expert_does(adapted: Path, tmp_path: Path) -> None:
    base = adapted / "base"
    whole = transformers.BertForSequenceClassification.from_pretrained(base, num_labels=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = PeftModel.from_pretrained(whole, adapted / "a")
    merged(whole).save_pretrained(tmp_path)
    family = Family.open(base, {"adapter": adapted / "a", "whole": tmp_path})
    one, other = family.experts["adapter"], family.experts["whole"]
    assert one.names == other.names
    assert family.alignment.heads["adapter"] == ("classifier.bias", "classifier.weight")
    for name in one.names:
        assert one.model_name(name) == other.model_name(name)
        assert one.shape(name) == other.shape(name)
        assert one.read(name) == pytest.approx(other.read(name), abs=1e-6)
    kept = ("architectures", "id2label", "label2id", "hidden_size")
    assert {k: one.config[k] for k in kept} == {k: other.config[k] for k in kept}


def test_the_folders_own_config_names_the_classes(adapted: Path, tmp_path: Path) -> None:
    folder, names = copied(adapted, tmp_path), {"0": "good", "1": "bad", "2": "odd"}
    config = json.loads((adapted / "base" / "config.json").read_text()) | {"id2label": names}
    (folder / "config.json").write_text(json.dumps(config))
    assert Adapter(folder, base=Checkpoint(adapted / "base")).config["id2label"] == names


def test_a_head_of_its_own_replaces_the_bases(adapted: Path, tmp_path: Path) -> None:
    """A classifier tuned from a language model has no language-model head."""
    make_model("Bert", "ForPreTraining").save_pretrained(tmp_path)
    expert = Adapter(adapted / "a", base=Checkpoint(tmp_path))
    assert {name.split(".")[0] for name in expert.names} == {"bert", "classifier"}


def test_old_files_are_read(adapted: Path, tmp_path: Path) -> None:
    folder, base = copied(adapted, tmp_path), Checkpoint(adapted / "base")
    torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"adapter_model\.bin: is a pickled file, which is read only"
    ):
        Adapter(folder, base=base)
    old = Adapter(folder, base=base, pickled=True)
    assert old.fingerprint == Adapter(adapted / "a", base=base).fingerprint


def test_shapes_tell_how_weights_are_stored(tmp_path: Path) -> None:
    """PEFT's setting is that of the last module; here it is wrong for all of them."""
    make_model("GPT2", "LMHeadModel").save_pretrained(tmp_path / "base")
    model = make_model("GPT2", "LMHeadModel")
    end = tensors_of(merged(adapt(model, tmp_path / "a", target_modules=["c_attn", "c_proj"])))
    change(tmp_path / "a", lambda values, _: values.update(fan_in_fan_out=False))
    expert = Adapter(tmp_path / "a", base=Checkpoint(tmp_path / "base"))
    for name in expert.names:
        assert expert.read(name) == pytest.approx(end[name], abs=1e-6)


@pytest.mark.parametrize(
    "edit",
    [
        lambda values, _: values.update(lora_alpha=7),
        lambda values, _: values.update(use_rslora=True),
        lambda _, tensors: tensors[next(iter(tensors))].view(-1)[:1].add_(1e-6),
    ],
    ids=["alpha", "rsLoRA", "a weight"],
)
def test_the_fingerprint_changes_with_all_that_counts(
    adapted: Path, tmp_path: Path, edit: Callable[[Any, Tensors], Any]
) -> None:
    base = Checkpoint(adapted / "base")
    before = Adapter(adapted / "a", base=base).fingerprint
    assert Adapter(copied(adapted, tmp_path), base=base).fingerprint == before
    assert Adapter(change(tmp_path / "a", edit), base=base).fingerprint != before


def test_the_fingerprint_changes_with_the_base(adapted: Path, tmp_path: Path) -> None:
    file = adapted / "base" / "model.safetensors"
    tensors = load_file(file)
    tensors["pooler.dense.bias"][0] += 1e-6
    save_file(tensors, tmp_path / "model.safetensors")
    one, other = Checkpoint(adapted / "base"), Checkpoint(tmp_path)
    assert (
        open_expert(adapted / "a", one).fingerprint != open_expert(adapted / "a", other).fingerprint
    )


def tied(to: Path, **settings: Any) -> tuple[Adapter, torch.Tensor, torch.Tensor]:
    """Adapt a model with tied embeddings; return its logits, and the expert's."""
    model = make_model("Llama", "ForCausalLM", tie_word_embeddings=True).eval()
    model.save_pretrained(to / "base")
    adapted = adapt(model, to / "a", task_type="CAUSAL_LM", **settings)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        logits = adapted(tokens).logits
        expert = Adapter(to / "a", base=Checkpoint(to / "base"))
        plain = make_model("Llama", "ForCausalLM", tie_word_embeddings=True).eval()
        plain.load_state_dict({n: expert.read(n) for n in expert.names}, strict=False)
        return expert, logits, plain(tokens).logits


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}],
    ids=["LoRA", "whole"],
)
def test_tied_embeddings_are_tuned_as_one(tmp_path: Path, settings: dict[str, Any]) -> None:
    """The adapted model's own output counts: merge_and_unload adds an update of both twice."""
    settings = {"target_modules": ["q_proj"]} | settings
    expert, logits, ours = tied(tmp_path, ensure_weight_tying=True, **settings)
    assert "lm_head.weight" not in expert.names
    assert ours == pytest.approx(logits, abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
        {
            "target_modules": ["embed_tokens", "q_proj"],
            "use_dora": True,
            "ensure_weight_tying": True,
        },
    ],
)
def test_tied_embeddings_that_came_apart_are_refused(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="output layer is tied to its embeddings, but"):
        tied(tmp_path, **settings)


def test_values_tell_what_is_tied_if_the_config_does_not(tmp_path: Path) -> None:
    """A file may hold the embeddings twice, tied or not; the config may leave it out."""
    model = make_model("Llama", "ForCausalLM", tie_word_embeddings=True).eval()
    adapt(model, tmp_path / "a", task_type="CAUSAL_LM", target_modules=["embed_tokens"])
    model = make_model("Llama", "ForCausalLM", tie_word_embeddings=True).eval()
    model.save_pretrained(tmp_path / "base")
    file, config = tmp_path / "base" / "model.safetensors", tmp_path / "base" / "config.json"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, {"format": "pt"})
    values = json.loads(config.read_text())
    for said, is_tied in ((None, True), (True, True), (False, False)):
        config.write_text(json.dumps(values | {"tie_word_embeddings": said}))
        base = Checkpoint(tmp_path / "base")
        assert base.is_tied == is_tied
        assert base.repeated == ({"lm_head.weight"} if is_tied else frozenset())
        if is_tied:
            with pytest.raises(ValueError, match="output layer is tied to its embeddings, but"):
                Adapter(tmp_path / "a", base=base)
        else:
            expert = Adapter(tmp_path / "a", base=base)
            assert expert.update("lm_head.weight") is None
            assert expert.update("model.embed_tokens.weight") is not None


QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"
REFUSED: dict[str, tuple[Callable[[Any, Tensors], Any], str]] = {
    "peft_type": (lambda v, _: v.update(peft_type="IA3"), r"peft_type: must be LORA .* got 'IA3'"),
    "X-LoRA": (lambda v, _: v.update(peft_type="XLORA"), r"peft_type: must be LORA .* 'XLORA'"),
    "replicated layers": (
        lambda v, _: v.update(layer_replication=[[0, 2], [1, 2]]),
        "layer_replication: such an adapter repeats layers",
    ),
    "aLoRA": (
        lambda v, _: v.update(alora_invocation_tokens=[3]),
        "alora_invocation_tokens: such an adapter adapts some tokens",
    ),
    "alpha": (lambda v, _: v.update(lora_alpha=1e999), "lora_alpha: must be a number above 0"),
    "rank": (lambda v, _: v.update(r=4.5), "r: must be a whole number, but got 4.5"),
    "flag": (lambda v, _: v.update(use_rslora="no"), "use_rslora: must be true or false, but"),
    "modules": (lambda v, _: v.update(modules_to_save="x"), "modules_to_save: must be a list, but"),
    "QA-LoRA": (lambda v, _: v.update(use_qalora=True), "use_qalora: such an adapter"),
    "parameters": (
        lambda v, _: v.update(target_parameters=["experts.gate"]),
        "target_parameters: such an adapter",
    ),
    "token rows": (
        lambda v, _: v.update(trainable_token_indices=[3]),
        "trainable_token_indices: such an adapter",
    ),
    **{
        start: (
            lambda v, _, start=start: v.update(init_lora_weights=start),
            f"init_lora_weights: must be one that leaves the base's weights .* got '{start}'",
        )
        for start in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga")
    },
    "no rank": (lambda v, _: v.pop("r"), "r: must be a number above 0, up to 1e.09, but got None"),
    "another rank": (lambda v, _: v.update(r=8), "dense must have two matrices of rank 8"),
    "a broken pattern": (
        lambda v, _: v.update(rank_pattern={"(": 4}),
        "rank_pattern: '\\(' is no regular expression",
    ),
    "half a pair": (
        lambda _, t: t.pop(f"{QUERY}.lora_B.weight"),
        "query must have lora_A.weight, lora_B.weight, but has lora_A.weight",
    ),
    "magnitudes of no DoRA": (
        lambda _, t: t.update({f"{QUERY}.lora_magnitude_vector": torch.ones(16)}),
        "query must have .*, but has .*lora_magnitude_vector",
    ),
    "another kind of part": (
        lambda _, t: t.update({f"{QUERY}.lora_diag": torch.ones(4)}),
        "query.lora_diag is no part of LoRA",
    ),
    "another shape": (
        lambda _, t: t.update({f"{QUERY}.lora_B.weight": torch.ones(24, 4)}),
        r"query has an update of shape \(24, 16\), but .*query.weight .* is \(16, 16\)",
    ),
    "another model": (
        lambda v, t: (
            v.update(base_model_name_or_path="some/llama"),
            t.update({f"{QUERY.replace('query', 'q_proj')}.lora_A.weight": torch.ones(4, 16)}),
            t.update({f"{QUERY.replace('query', 'q_proj')}.lora_B.weight": torch.ones(16, 4)}),
        ),
        "q_proj has an update, but .* has no .*q_proj.weight; .* tuned from some/llama",
    ),
    "a tensor of no module": (
        lambda _, t: t.update({"base_model.model.bert.extra.weight": torch.ones(4)}),
        "bert.extra.weight must be a tensor of .*, or of a module in modules_to_save",
    ),
    "no LoRA at all": (
        lambda _, t: [t.pop(name) for name in list(t) if "lora_" in name],
        "holds no LoRA weights",
    ),
    "another vocabulary": (
        lambda _, t: t.update(
            {"base_model.model.bert.embeddings.word_embeddings.weight": torch.ones(33, 16)}
        ),
        r"every shared tensor must have the base's shape, but .* is \(33, 16\)",
    ),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_an_expert_says_why(
    adapted: Path, tmp_path: Path, edit: Callable[[Any, Tensors], Any], message: str
) -> None:
    folder = change(copied(adapted, tmp_path), edit)
    with pytest.raises(ValueError, match=f"^experts.x: .*{message}") as error:
        Family.open(adapted / "base", {"x": folder})
    assert "\n" not in str(error.value)


def test_a_folder_with_an_adapter_and_a_model_is_refused(adapted: Path, tmp_path: Path) -> None:
    folder = copied(adapted, tmp_path)
    shutil.copy(adapted / "base" / "model.safetensors", folder)
    with pytest.raises(ValueError, match=r"experts.x: .*an adapter or a whole model, but .* both"):
        Family.open(adapted / "base", {"x": folder})


def test_a_folder_without_weights_is_refused(adapted: Path, tmp_path: Path) -> None:
    folder = copied(adapted, tmp_path)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"experts.x: .*holds neither adapter_model.safetensors"):
        Family.open(adapted / "base", {"x": folder})
    folder = copied(adapted, tmp_path / "other")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"experts.x: .*but no adapter_config.json"):
        Family.open(adapted / "base", {"x": folder})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_that_is_not_finite_is_refused(
    adapted: Path, tmp_path: Path, value: float
) -> None:
    folder = change(
        copied(adapted, tmp_path), lambda _, t: t[f"{QUERY}.lora_A.weight"].fill_(value)
    )
    family = Family.open(adapted / "base", {"x": folder})
    with pytest.raises(ValueError, match=r"experts.x: .*every weight must be finite, but"):
        _ = family.fingerprints
    with pytest.raises(ValueError, match="every weight must be finite, but"):
        family.delta("encoder.layer.0.attention.self.query.weight", "x")
