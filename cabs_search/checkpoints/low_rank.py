"""Low-rank updates of weights, as an adapter's file has them.

Of a module with weight W as a matrix [out, in], and s = α/r (rsLoRA, arXiv 2312.03732: α/√r):

    LoRA (arXiv 2106.09685)   update = s·B·A, A [r, in], B [out, r]
    DoRA (arXiv 2402.09353)   update = m·V/‖V‖ − W, V = W + s·B·A, m [out], ‖V‖ of each row

The matrix of an embedding is [dimensions, tokens], the transpose of its weight.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cabs_search.checkpoints.adapter_settings import FILE, AdapterSettings
from cabs_search.checkpoints.checkpoint import Checkpoint

PREFIX = "base_model.model."
"""Begin of the file's names, before a tensor's name in the model that was adapted."""
PART = re.compile(
    r"(?P<module>.+)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]"
    r"|lora_magnitude_vector)(\.weight)?"
)
LAYER, EMBEDDING = ("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")
MAGNITUDE, BIAS = "lora_magnitude_vector", "lora_B.bias"


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """One module's update: the names of its parts in the file, and what they mean."""

    module: str
    """Name of the module in the model that was adapted."""
    a: str
    b: str
    magnitude: str | None
    """DoRA's m."""
    bias: str | None
    """An update of the module's bias; s counts for it, too."""
    scale: float
    """s."""
    shape: tuple[int, int]
    """[out, in]."""
    is_embedding: bool

    @classmethod
    def of(
        cls, file: Checkpoint, module: str, parts: Mapping[str, str], settings: AdapterSettings
    ) -> LowRank:
        """Put a module's parts together.

        Args:
            file: the adapter's file.
            module: name of the module.
            parts: names in the file, by part.
            settings: the adapter's.

        Raises:
            ValueError: a part is missing or has another shape than the others.

        """
        a, b = EMBEDDING if EMBEDDING[0] in parts else LAYER
        wanted = {a, b, MAGNITUDE} if settings.has_magnitudes else {a, b}
        if parts.keys() - {BIAS} != wanted:
            raise ValueError(
                f"{file.folder}: {module} must have {', '.join(sorted(wanted))}, but has"
                f" {', '.join(sorted(parts))}"
            )
        shapes = {part: file.shape(key) for part, key in parts.items()}
        rank, out = settings.rank_of(module), shapes[b][:1]
        expected = {a: (rank, *shapes[a][1:2]), b: (*out, rank), MAGNITUDE: out, BIAS: out}
        for part, shape in shapes.items():
            if shape != expected[part] or len(expected[a]) != 2:
                raise ValueError(
                    f"{file.folder}: {module} must have two matrices of rank {rank}, as {FILE}"
                    f" says, and vectors that fit to them, but {part} is {shape}"
                )
        return cls(
            module=module,
            a=parts[a],
            b=parts[b],
            magnitude=parts.get(MAGNITUDE),
            bias=parts.get(BIAS),
            scale=settings.scale(module),
            shape=(shapes[b][0], shapes[a][1]),
            is_embedding=a in EMBEDDING,
        )

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a weight of a shape can have this update; layers may store [in, out]."""
        return shape == self.shape[::-1] or (shape == self.shape and not self.is_embedding)

    def update(self, file: Checkpoint, weight: Tensor, *, is_transposed: bool) -> Tensor:
        """Compute the update of the weight.

        Args:
            file: the adapter's file.
            weight: W as the model stores it.
            is_transposed: whether that is [in, out].

        Returns:
            float32, in the shape of ``weight``.

        """
        low_rank = self.scale * (file.read(self.b).float() @ file.read(self.a).float())
        low_rank = low_rank.T.contiguous() if is_transposed else low_rank
        if self.magnitude is None:
            return low_rank
        weight = weight.float()
        norms = torch.linalg.vector_norm(weight + low_rank, dim=0 if is_transposed else 1)
        ratios = file.read(self.magnitude).float() / norms
        ratios = ratios if is_transposed else ratios[:, None]
        # Not m·V/‖V‖ − W, which loses the update's last digits where m is near ‖V‖.
        update: Tensor = (ratios - 1) * weight + ratios * low_rank
        return update


def sort_names(file: Checkpoint) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Sort the names of an adapter's file.

    Returns:
        Names of low-rank parts by module and part; names of tensors that are stored whole, by name
        in the model that was adapted.

    Raises:
        ValueError: a name is of another kind of adapter, or none is of LoRA.

    """
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    whole: dict[str, str] = {}
    for key in file.names:
        name = key.removeprefix(PREFIX)
        if found := PART.fullmatch(name):
            modules[found["module"]][found["part"]] = key
        elif ".lora_" in name:
            raise ValueError(f"{file.folder}: {key} is no part of LoRA, rsLoRA or DoRA")
        # With ``bias: all``, PEFT also stores what a head's bias was before tuning.
        elif ".original_module." not in name:
            whole.setdefault(re.sub(r"\.(base_layer|modules_to_save)\.", ".", name), key)
    if not modules:
        raise ValueError(f"{file.folder}: holds no LoRA weights")
    return dict(modules), whole
