"""Texts by vLLM, which computes with the resident model's own tensors.

vLLM runs in the worker's process, so that its parameters are tensors of ours: the resident model
takes slices of their rows for its own, and what turns that into a candidate turns vLLM's model into
it. Addresses stay, and so do captured CUDA graphs. Written against vllm 0.33.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.generation import Sampling
from cabs_search.scoring.generate import cut, end_strings
from cabs_search.scoring.models import pick_device
from cabs_search.spec.generator import VLLM, Generator
from cabs_search.spec.task import Task
from cabs_search.tasks.items import Ints, Items

SETTINGS = {
    # The engine in this process: its tensors are then ours.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
ROW_PADDING = 64
"""Number of which the rows of vLLM's embeddings are a multiple."""
PROBE = tuple(range(1, 18))
"""Tokens after which the likeliest next one is looked at."""


def check_vllm(
    tasks: Mapping[str, Task], dtype: str, base: Path, device: str, *, is_here: bool = True
) -> None:
    """Check that vLLM can generate a study's texts.

    Args:
        tasks: by name.
        dtype: of the resident model.
        base: folder of the base.
        device: ``cpu``, ``cuda``, or ``auto``.
        is_here: whether texts are generated on this machine; if not, the workers' looks again.

    Raises:
        ValueError: it cannot.

    """
    where = f"generator.engine: {VLLM}"
    if not any(task.kind.generates for task in tasks.values()):
        raise ValueError(f"{where} is for tasks that generate texts, but none does")
    if dtype == "float32":
        raise ValueError(f"{where} needs dtype bfloat16 or float16, but got float32")
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise ValueError(f"{where} needs weights that are not quantized, but those of base are")
    if is_here and find_spec(VLLM) is None:
        raise ValueError(f"{where} needs the package: pip install 'cabs-search[vllm]'")
    if is_here and pick_device(device) != "cuda":
        raise ValueError(f"{where} needs a GPU with CUDA; on a CPU it stores weights otherwise")


def own_rows(
    parameters: Mapping[str, Tensor],
    fused: Mapping[str, Sequence[str]],
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Find the rows of vLLM's parameters that belong to each tensor of a checkpoint.

    Args:
        parameters: vLLM's, by name; each [rows, ...].
        fused: names of the modules that vLLM joins row by row, by the name of the joint one, such
            as ``qkv_proj: [q_proj, k_proj, v_proj]``.
        shapes: shapes by name in the checkpoint.

    Returns:
        Slices by name in the checkpoint; tensors that have no such rows are left out.

    """
    found = {}
    for name, shape in shapes.items():
        whole, start, rows = parameters.get(name), 0, shape[0]
        padded = -(-rows // ROW_PADDING) * ROW_PADDING
        allowed = {rows, padded}
        if whole is None:
            module, _, field = name.rpartition(".")
            parent, _, leaf = module.rpartition(".")
            for joint, leaves in fused.items():
                if leaf in leaves:
                    parts = [shapes.get(f"{parent}.{one}.{field}") for one in leaves]
                    sizes = [part[0] if part else 0 for part in parts]
                    start, allowed = sum(sizes[: leaves.index(leaf)]), {sum(sizes)}
                    whole = parameters.get(f"{parent}.{joint}.{field}")
        if whole is not None and whole.shape[0] in allowed and whole.shape[1:] == shape[1:]:
            found[name] = whole[start : start + rows]
    return found


class Engine:
    """vLLM with the weights of the present candidate."""

    is_current = False
    """True if it generates with the present candidate."""

    def __init__(
        self,
        base: Checkpoint,
        shapes: Mapping[str, tuple[int, ...]],
        tasks: Mapping[str, Task],
        dtype: torch.dtype,
        generator: Generator,
    ) -> None:
        """Load the base.

        Args:
            base: the checkpoint.
            shapes: of the merged tensors, by shared name.
            tasks: by name.
            dtype: of the model.
            generator: its share of the GPU's memory.

        Raises:
            ValueError: vLLM cannot load it.

        """
        os.environ.update(SETTINGS)
        try:
            from vllm import LLM

            self._llm: Any = LLM(
                model=str(base.folder),
                dtype=str(dtype).removeprefix("torch."),
                tensor_parallel_size=1,
                distributed_executor_backend="uni",
                gpu_memory_utilization=generator.memory,
                max_model_len=max(t.max_length for t in tasks.values() if t.kind.generates),
                enable_prefix_caching=True,
                trust_remote_code=False,
            )
            (model,) = self._llm.apply_model(_itself)
        except Exception as error:  # of a package that is not ours
            raise ValueError(f"generator.engine: {VLLM}: {first_line(error)}") from error
        names = {name: base.model_name(name) for name in shapes}
        parameters = {n: p.data for n, p in model.named_parameters(remove_duplicate=False)}
        rows = own_rows(
            parameters,
            getattr(model, "packed_modules_mapping", {}),
            {names[name]: shape for name, shape in shapes.items()},
        )
        device = next(iter(parameters.values())).device
        self.tensors: dict[str, Tensor] = {}
        """Tensors of the resident model by shared name, not filled in."""
        self.loaded: dict[str, Tensor] = {}
        """Tensors that vLLM stores otherwise, by name in the checkpoint, and copies."""
        for name, shape in shapes.items():
            own = rows.get(names[name])
            values = base.read(name).to(device, dtype)
            # What vLLM itself has loaded says whether these rows are the tensor's.
            if own is None or own.dtype != dtype or not torch.equal(own, values):
                own = self.loaded[names[name]] = torch.empty(shape, dtype=dtype, device=device)
            self.tensors[name] = own
        self._seen: tuple[Any, Any] | None = None

    def generate(
        self, model: Any, items: Items, rows: Ints, sampling: Sampling | None
    ) -> list[str]:
        """Return texts as ``scoring.generate.generate`` does; ``model`` has the tensors."""
        if not len(rows):  # of a task with fewer items than there are blocks
            return []
        if not self.is_current:
            self._update(model)
        from vllm import SamplingParams

        strings, eos = end_strings(items), model.generation_config.eos_token_id
        same = {
            "max_tokens": items.task.max_new_tokens,
            "stop": strings,
            "stop_token_ids": [eos] if isinstance(eos, int) else list(eos or ()),
            "repetition_penalty": model.generation_config.repetition_penalty or 1.0,
            "skip_special_tokens": False,  # so that it finds these, too, among strings
        }
        params = []
        for key in (items.keys[i] for i in rows):
            drawn: dict[str, Any] = {"temperature": 0.0}
            if sampling:
                seed = int(digest(f"{sampling.seed} {key}")[:15], 16)
                drawn = {"temperature": sampling.temperature, "seed": seed}
            params.append(SamplingParams(**same, **drawn))
        prompts = [{"prompt_token_ids": items.rows[i].sequences[0]["input_ids"]} for i in rows]
        found = self._llm.generate(prompts, params, use_tqdm=False)
        tokens = [list(one.outputs[0].token_ids) for one in found]
        texts = items.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [cut(text, strings) for text in texts]

    def _update(self, model: Any) -> None:
        """Take over the present candidate.

        Raises:
            RuntimeError: vLLM keeps something of the last one.

        """
        if self.loaded:
            self._llm.apply_model(self._load)
        # A change of weights does not empty it (vllm issues 9744, 12284).
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vllm keeps keys and values of the last candidate")
        seen = self._probe(model)
        if self._seen and seen[0] != self._seen[0] and seen[1] == self._seen[1]:
            raise RuntimeError("vllm computes with the last candidate's weights")
        self._seen, self.is_current = seen, True

    @torch.no_grad()
    def _load(self, model: Any) -> None:
        model.load_weights(iter(self.loaded.items()))

    @torch.inference_mode()
    def _probe(self, model: Any) -> tuple[Any, Any]:
        """Return log-probabilities after PROBE: the resident model's, and vLLM's greatest."""
        from vllm import SamplingParams

        tokens = torch.tensor([PROBE], device=model.device)
        ours = model(input_ids=tokens).logits[0, -1].float().log_softmax(-1)
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=1)
        prompts = [{"prompt_token_ids": list(PROBE)}]
        ((found,),) = (one.outputs for one in self._llm.generate(prompts, params, use_tqdm=False))
        return ours.tolist(), {token: one.logprob for token, one in found.logprobs[0].items()}


def _itself(model: Any) -> Any:
    return model
