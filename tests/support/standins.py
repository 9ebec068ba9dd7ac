"""Stand-ins: two-layer models of real architectures, trained in seconds, for every kind of task.

``make_base`` makes a base with a tokenizer, ``make_expert`` trains it on rows of one kind,
``write_data`` writes other rows of that kind. The rows can be learned from single words: a mood
word tells the class, a title starts an answer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from cabs_search.kinds import registry
from cabs_search.kinds.question_answering import Passage
from cabs_search.kinds.token_classification import Words
from cabs_search.scoring.batches import collate
from cabs_search.scoring.likelihoods import log_likelihoods
from cabs_search.spec.task import DataSource, Task
from cabs_search.tasks.items import Items
from cabs_search.tasks.tokenizer import pad_token_id

ARCHITECTURES = ("bert", "roberta", "deberta-v2", "modernbert", "gpt2", "llama")
HEAD_KINDS = tuple(kind.name for kind in registry.KINDS if not kind.is_causal)
CAUSAL_KINDS = tuple(k.name for k in registry.KINDS if k.is_causal and not k.generates)
MOODS = (
    ("good", "fine", "happy"),
    ("bad", "poor", "gloomy"),
    ("odd", "strange", "weird"),
    ("calm", "quiet", "still"),
)
TITLES, NAMES = ("doctor", "captain"), ("smith", "jones", "brown", "taylor", "wilson", "evans")
PLACES = ("london", "paris", "madrid", "rome", "vienna")
FILLERS = (
    *("the", "a", "and", "then", "in", "on", "near", "under", "over", "often", "very"),
    *("cat", "dog", "bird", "house", "runs", "sits", "sleeps", "walks"),
)
QUESTION = ("who", "came", "first", "what", "happened", "next")
WORDS = (*FILLERS, *TITLES, *NAMES, *PLACES, *QUESTION, *(word for mood in MOODS for word in mood))
WORD_LABELS = ("O", "B-PER", "I-PER", "B-LOC")
MOST_STEPS, BATCH, RATE = 400, 32, 3e-3
ENOUGH = 0.15
"""Share of the first losses at which training ends."""
MAX_LENGTH = 48


def make_base(folder: Path, architecture: str) -> Path:
    """Save a base of random weights and its tokenizer; ``architecture`` is of ARCHITECTURES."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(architecture)
    config = _make_config(architecture, tokenizer)
    auto = transformers.AutoModelForCausalLM if architecture == "llama" else transformers.AutoModel
    auto.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_expert(
    folder: Path,
    base: Path,
    architecture: str,
    kind: str,
    seed: int,
    *,
    labels: int = 2,
    pair: bool = False,
) -> Path:
    """Train ``base`` with a fresh head on a small data set; save model and tokenizer.

    Args:
        architecture: the base's.
        seed: of the head, the rows and their order.
        labels: classes, for classification.
        pair: whether classification reads a pair of texts.

    Raises:
        AssertionError: training does not lower the loss.
    """
    torch.manual_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    counts = {"classification": labels, "regression": 1, "token-classification": len(WORD_LABELS)}
    extra: dict[str, Any] = {"num_labels": counts[kind]} if kind in counts else {}
    if kind == "token-classification":
        extra |= {
            "id2label": dict(enumerate(WORD_LABELS)),
            "label2id": {n: i for i, n in enumerate(WORD_LABELS)},
        }
    model = auto_class(kind).from_pretrained(base, dtype=torch.float32, **extra)
    assert model.config.model_type == architecture
    task = task_of(kind, pair=pair)
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        base, **task.kind.tokenizer_arguments(model.config)
    )
    rows = rows_of(kind, 1000 + seed, 256, labels=labels, pair=pair)
    if task.kind.generates:  # it learns the answer, and to end after it
        task = task_of("greedy-continuation", text=["start", "answer"])
        rows = [row | {"answer": f"{row['answer']}{tokenizer.eos_token}"} for row in rows]
    with one_thread():
        _train(model, as_items(rows, task, model.config, tokenizer), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def auto_class(kind: str) -> Any:
    """Return the transformers class that loads a model with the head of a kind."""
    return getattr(transformers, f"AutoModel{task_of(kind).kind.head}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread; with more, tiny models are many times slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_data(
    path: Path, kind: str, seed: int, count: int, *, labels: int = 2, pair: bool = False
) -> Path:
    """Write rows that an expert of this kind can score, as JSON lines or Parquet.

    The columns are those of ``fields_of``: GLUE, STS-B, RACE, SQuAD and CoNLL in small.
    """
    rows = rows_of(kind, seed, count, labels=labels, pair=pair)
    if path.suffix == ".parquet":
        from datasets import Dataset

        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fields_of(kind: str, *, pair: bool = False) -> dict[str, Any]:
    """Return the fields of a task, as in a spec, that reads what ``write_data`` writes."""
    match kind:
        case "classification":
            return {
                "text": ["sentence1", "sentence2"] if pair else "sentence",
                "max_length": MAX_LENGTH,
            }
        case "regression":
            return {
                "kind": kind,
                "text": ["sentence1", "sentence2"],
                "label": "score",
                "max_length": MAX_LENGTH,
            }
        case "multiple-choice":
            fields = {"text": ["article", "question"], "choices": "options", "label": "answer"}
            return {"kind": kind, **fields, "max_length": MAX_LENGTH}
        case "question-answering":
            fields = {"text": ["question", "context"], "label": "answers"}
            return {"kind": kind, **fields, "max_length": MAX_LENGTH, "stride": 12}
        case "choices-by-likelihood":
            fields = {"text": "start", "choices": "ends", "label": "right"}
            return {"kind": kind, **fields, "max_length": MAX_LENGTH}
        case "right-choices":
            fields = {"text": "start", "choices": "ends", "label": "right"}
            return {"kind": kind, **fields, "max_length": MAX_LENGTH}
        case "greedy-continuation":
            return {"kind": kind, "text": ["start", "next"], "max_length": MAX_LENGTH}
        case "language-modeling":
            return {"kind": kind, "text": "text", "max_length": 12}
        case "generation":
            fields = {"text": "start", "label": "answer", "max_new_tokens": 9}
            return {"kind": kind, **fields, "max_length": MAX_LENGTH}
        case "token-classification":
            return {"kind": kind, "text": "tokens", "label": "ner_tags", "max_length": MAX_LENGTH}


def task_of(kind: str, *, pair: bool = False, **changes: Any) -> Task:
    """Return a task that reads what ``write_data`` writes, with some fields changed."""
    return Task(dataset=DataSource(json="rows.jsonl"), **fields_of(kind, pair=pair) | changes)


def rows_of(
    kind: str, seed: int, count: int, *, labels: int = 2, pair: bool = False
) -> list[dict[str, Any]]:
    """Return rows as ``write_data`` writes them."""
    draw = random.Random(f"{kind} {seed}")
    return [_row(draw, kind, labels, pair) for _ in range(count)]


def as_items(rows: list[dict[str, Any]], task: Task, config: Any, tokenizer: Any) -> Items:
    """Tokenize rows, in their order, without a data set or splits."""
    found = []
    for row in rows:
        texts = task.kind.texts("rows", task, row)
        label = task.kind.label("rows", task, config, texts, row.get(task.label))
        found.append(task.kind.encode("rows", task, tokenizer, config, texts, label))
    pad = dict.fromkeys(found[0].sequences[0], 0) | {"input_ids": pad_token_id(config, tokenizer)}
    return Items(task, tuple(map(str, range(len(rows)))), tuple(found), pad, tokenizer=tokenizer)


def _row(draw: random.Random, kind: str, labels: int, pair: bool) -> dict[str, Any]:
    match kind:
        case "classification":
            label = draw.randrange(labels)
            if pair:
                return {
                    "sentence1": _text(draw),
                    "sentence2": _text(draw, MOODS[label]),
                    "label": label,
                }
            return {"sentence": _text(draw, MOODS[label]), "label": label}
        case "regression":
            level = draw.randrange(len(MOODS))
            score = 5 * level / (len(MOODS) - 1)
            return {
                "sentence1": _text(draw),
                "sentence2": _text(draw, MOODS[level]),
                "score": score,
            }
        case "multiple-choice":
            right = draw.randrange(4)
            options = [_text(draw, MOODS[0] if i == right else MOODS[1], most=4) for i in range(4)]
            question = " ".join(draw.sample(QUESTION, k=3))
            return {
                "article": _text(draw),
                "question": question,
                "options": options,
                "answer": "ABCD"[right],
            }
        case "question-answering":
            return _question(draw)
        case "token-classification":
            return _sentence(draw)
        case "choices-by-likelihood":
            right, count = draw.randrange(3), draw.randint(3, 4)
            ends = [_text(draw, MOODS[i != right], most=4) for i in range(count)]
            return {"start": _text(draw), "ends": ends, "right": right}
        case "right-choices":
            flags = [1, 0, *draw.choices((0, 1), k=draw.randint(1, 2))]
            ends = [_text(draw, MOODS[not flag], most=4) for flag in flags]
            return {"start": _text(draw), "ends": ends, "right": flags}
        case "greedy-continuation":
            mood = draw.randrange(2)
            return {"start": _text(draw, MOODS[mood], most=5), "next": PLACES[mood]}
        case "language-modeling":
            start, words = draw.randrange(len(FILLERS)), FILLERS + FILLERS
            return {"text": " ".join(words[start : start + draw.randint(3, 9)])}
        case "generation":
            mood = draw.randrange(2)
            return {"start": _text(draw, MOODS[mood]), "answer": PLACES[mood]}


def _text(draw: random.Random, among: tuple[str, ...] = (), most: int = 8) -> str:
    """Return a few fillers with one of the given words among them."""
    words = draw.choices(FILLERS, k=draw.randint(3, most))
    if among:
        words.insert(draw.randint(0, len(words)), draw.choice(among))
    return " ".join(words)


def _question(draw: random.Random) -> dict[str, Any]:
    """Return a context, often longer than a window, whose answer is a title and a name."""
    before, after = (" ".join(draw.choices(FILLERS, k=draw.randint(2, 30))) for _ in range(2))
    title, name = draw.choice(TITLES), draw.choice(NAMES)
    context = f"{before} {title} {name} {after}"
    answers = {
        "text": [f"{title} {name}", name],
        "answer_start": [len(before) + 1, len(f"{before} {title} ")],
    }
    return {
        "question": " ".join(draw.sample(QUESTION, k=3)),
        "context": context,
        "answers": answers,
    }


def _sentence(draw: random.Random) -> dict[str, Any]:
    words, tags = [], []
    for _ in range(draw.randint(3, 8)):
        match draw.randrange(4):
            case 0:
                words += [draw.choice(TITLES), draw.choice(NAMES)]
                tags += [1, 2]
            case 1:
                words.append(draw.choice(PLACES))
                tags.append(3)
            case _:
                words.append(draw.choice(FILLERS))
                tags.append(0)
    return {"tokens": words, "ner_tags": tags}


def _train(model: Any, items: Items, seed: int) -> None:
    """Train with AdamW until it is small; it must go down."""
    model.config.pad_token_id = items.pad["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    draw, losses = np.random.default_rng(seed), []
    model.train()
    while len(losses) < MOST_STEPS and (
        len(losses) < 20 or np.mean(losses[-10:]) > ENOUGH * np.mean(losses[:5])
    ):
        loss = _loss(model, items, draw.choice(len(items), BATCH, replace=False))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    first, last = float(np.mean(losses[:5])), float(np.mean(losses[-10:]))
    assert last < 0.6 * first, (
        f"training must lower the loss, but it went from {first:.3f} to {last:.3f}"
    )


def _loss(model: Any, items: Items, rows: Any) -> torch.Tensor:
    """Return the library's loss; of kinds by likelihood the kind's own."""
    if not items.task.kind.is_causal:
        return model(**_inputs(items, rows)).loss
    output = log_likelihoods(model, items, rows, model.device)
    return items.task.kind.losses(items.task, output, [items.rows[i] for i in rows]).mean()


def _inputs(items: Items, rows: Any) -> dict[str, torch.Tensor]:
    """Return a batch with the labels that transformers computes its loss from."""
    batch, chosen = collate(items, rows), [items.rows[i] for i in rows]
    match items.task.kind.name:
        case "classification":
            return batch | {"labels": torch.tensor([row.label for row in chosen])}
        case "regression":
            return batch | {"labels": torch.tensor([[row.label] for row in chosen])}
        case "multiple-choice":
            apart = {k: v.view(len(chosen), -1, v.shape[-1]) for k, v in batch.items()}
            return apart | {"labels": torch.tensor([row.label for row in chosen])}
        case "question-answering":
            passages = [row.marks for row in chosen if isinstance(row.marks, Passage)]
            starts, ends = torch.tensor(
                [window.target or (0, 0) for p in passages for window in p.windows]
            ).T
            return batch | {"start_positions": starts, "end_positions": ends}
        case "token-classification":
            labels = torch.full_like(batch["input_ids"], -100)
            for i, row in enumerate(chosen):
                assert isinstance(row.marks, Words)
                labels[i, list(row.marks.places)] = torch.tensor(row.marks.labels)
            return batch | {"labels": labels}


def make_tokenizer(architecture: str) -> Any:
    """Return a fast tokenizer over WORDS: whole words, or RoBERTa's or GPT-2's byte-level BPE."""
    if architecture in ("gpt2", "llama"):
        vocabulary, merges = _bytes_and_merges(("<|endoftext|>", "<|pad|>"))
        return transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges, pad_token="<|pad|>")
    if architecture == "roberta":
        vocabulary, merges = _bytes_and_merges(("<s>", "<pad>", "</s>", "<unk>", "<mask>"))
        return transformers.RobertaTokenizer(vocab=vocabulary, merges=merges)
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    whole = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate((*marks, *WORDS))}, unk_token="[UNK]")
    )
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", marks.index("[CLS]")), ("[SEP]", marks.index("[SEP]"))],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, **dict(zip(names, marks, strict=True))
    )


def _bytes_and_merges(marks: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Train byte-level BPE that leaves rare words in pieces, its special tokens first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(marks) + len(alphabet) + 100,
        special_tokens=list(marks),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def _make_config(architecture: str, tokenizer: Any) -> Any:
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 64,
    }
    match architecture:
        case "bert":
            return transformers.BertConfig(**size, **common, **quiet)
        case "roberta":
            marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            return transformers.RobertaConfig(**size, **common, **quiet, **marks, type_vocab_size=1)
        case "deberta-v2":
            heads = {
                "relative_attention": True,
                "pos_att_type": ["c2p", "p2c"],
                "type_vocab_size": 2,
            }
            return transformers.DebertaV2Config(**size, **common, **quiet, **heads)
        case "modernbert":
            marks = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
            marks |= {
                "bos_token_id": tokenizer.cls_token_id,
                "eos_token_id": tokenizer.sep_token_id,
            }
            return transformers.ModernBertConfig(**size, **common, **marks)
        case "gpt2":
            marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
            off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            common.pop("max_position_embeddings")
            return transformers.GPT2Config(**shape, **off, **common, **marks)
        case "llama":
            marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
            return transformers.LlamaConfig(
                **size, **common, **marks, num_key_value_heads=1, tie_word_embeddings=True
            )
    raise ValueError(
        f"architecture must be one of {', '.join(ARCHITECTURES)}, but got {architecture}"
    )
