"""Vocabularies that differ: tensors with a row for each token, and the tokens of their rows.

The files of a tokenizer are read as they are, so that nothing of transformers is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

from cabs_search.checkpoints.json_files import read_json

SAME, COMMON_ROWS = "same", "common-rows"
"""Treatments of an expert that has other rows of tokens than the base: it is refused, or the rows
that both have are merged and the base's others kept.
"""
TOKEN_ROWS = re.compile(
    r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings|tok_embeddings|lm_head|embed_out)"
    r"\.(weight|bias)$|^output\.weight$"
)
"""Names of a language model's tensors with a row for each token."""


def tokens_of(folder: Path) -> dict[int, str]:
    """Return the tokens of a checkpoint's tokenizer by id.

    Raises:
        ValueError: the folder has neither ``tokenizer.json`` nor ``vocab.json``, or one of its
            files cannot be read.

    """
    whole, vocab = folder / "tokenizer.json", folder / "vocab.json"
    added, settings = folder / "added_tokens.json", folder / "tokenizer_config.json"
    tokens: dict[int, str] = {}
    try:
        if whole.is_file():
            content = read_json(whole)
            listed = content["model"]["vocab"]
            ids = listed if isinstance(listed, dict) else {t[0]: i for i, t in enumerate(listed)}
            tokens |= {int(at): token for token, at in ids.items()}
            tokens |= {int(one["id"]): one["content"] for one in content.get("added_tokens") or ()}
        elif vocab.is_file():
            tokens |= {int(at): token for token, at in read_json(vocab).items()}
        else:
            raise ValueError(
                f"{folder}: has neither tokenizer.json nor vocab.json, by which tokens are compared"
            )
        if added.is_file():
            tokens |= {int(at): token for token, at in read_json(added).items()}
        decoder = read_json(settings).get("added_tokens_decoder") if settings.is_file() else None
        tokens |= {int(at): one["content"] for at, one in (decoder or {}).items()}
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"{folder}: its tokenizer's files cannot be read: {error!r}") from error
    return tokens


def common_rows(base: Path, expert: Path, rows: int) -> int:
    """Return how many of the first rows of two checkpoints are the same tokens'.

    They end with the last token that both tokenizers have: rows after it are other tokens', or
    padding.

    Args:
        base, expert: folders.
        rows: that both have.

    Raises:
        ValueError: a row among them is another token's, or a token's in one of them alone; or a
            tokenizer cannot be read.

    """
    ours, theirs = tokens_of(base), tokens_of(expert)
    common = max((row for row in ours.keys() & theirs.keys() if row < rows), default=-1) + 1
    for row in range(common):
        if ours.get(row) != theirs.get(row):
            raise ValueError(
                f"common rows must be the same tokens', but row {row} is"
                f" {_shown(theirs.get(row))} against {_shown(ours.get(row))} in {base}"
            )
    return common


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)
