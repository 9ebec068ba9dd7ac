"""Tasks: rows of a data set become tokenized items, divided into two splits.

Every task has a *search* split and a *confirm* split. If both read the same rows, these are divided
by the hash of a row's group, so that the division depends on content only and no group is in both
splits. If they read two splits of the data, the search split leaves out groups of the confirm
split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cabs_search.checkpoints.adapter import Adapter, is_adapter
from cabs_search.checkpoints.checkpoint import Checkpoint
from cabs_search.common.formats import digest, first_line
from cabs_search.kinds.base import Kind
from cabs_search.kinds.classes import class_names
from cabs_search.merging.recipe import BASE
from cabs_search.spec.study import Spec
from cabs_search.spec.task import Split, Task
from cabs_search.tasks.dataset import Row, read_rows
from cabs_search.tasks.harness import read_documents
from cabs_search.tasks.items import SPLITS, Items, SplitName, tokenize
from cabs_search.tasks.splits import choose, divide, most_rows, without_leaks
from cabs_search.tasks.tokenizer import positions


def load_study_items(spec: Spec) -> dict[SplitName, dict[str, Items]]:
    """Return every task's items by split, see ``load_items``."""
    by_task = {task: load_items(spec, task) for task in spec.tasks}
    return {split: {task: items[split] for task, items in by_task.items()} for split in SPLITS}


def load_items(spec: Spec, name: str) -> dict[SplitName, Items]:
    """Read, divide and tokenize one task's rows.

    Raises:
        ValueError: the data cannot be read, or lacks a column, a label or enough rows.

    """
    task, expert, where = spec.tasks[name], spec.expert_of(name), f"tasks.{name}"
    model = expert if expert == BASE else f"experts.{expert}"
    folder = Path(spec.experts.get(expert, spec.base))
    config, tokenizer = _open_model(model, folder, spec, task.kind)
    task.kind.check_head(where, model, config)
    check_metric(where, task, class_names(config))
    has_twin = any(
        other is not task and other.inputs == task.inputs for other in spec.tasks.values()
    )

    def place(row: Row) -> tuple[str, str]:
        return digest(f"{spec.seed} {row.texts if has_twin else row.key}"), row.key

    items: dict[SplitName, Items] = {}
    for split, rows in _split_rows(where, task, config, tokenizer, spec.seed).items():
        wanted: Split = getattr(task, split)
        chosen = choose(sorted(rows, key=place), task, wanted.items)
        _check_rows(where, split, chosen, most_rows(rows, task, wanted.items))
        items[split] = tokenize(where, tokenizer, config, task, chosen)
        longest, limit = items[split].positions, positions(config)
        if longest > limit:
            raise ValueError(
                f"{where}.max_length: at most {limit}, the model's positions, but got"
                f" {task.max_length} and an item of {longest} tokens"
            )
    return items


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a model's folder holds a tokenizer; if not, the base's is used."""
    return any(folder.glob("tokenizer*")) or any(folder.glob("vocab*"))


def check_metric(where: str, task: Task, classes: Sequence[str]) -> None:
    """Raise ValueError if the task's metric cannot be computed.

    Args:
        where: start of the error, such as ``tasks.mood``.
        task: the task.
        classes: the head's names of its classes.

    """
    try:
        predictions, labels = map(task.kind.values, task.kind.samples(classes))
        task.measure.compute(predictions, labels)
    except Exception as error:
        raise ValueError(
            f"{where}.metric: {task.metric} cannot be computed: {first_line(error)}"
        ) from error


def _open_model(model: str, folder: Path, spec: Spec, kind: Kind) -> tuple[Any, Any]:
    """Return a model's config and tokenizer, the base's tokenizer if it has none."""
    from transformers import AutoConfig, AutoTokenizer

    try:
        if is_adapter(folder):
            base = Checkpoint(spec.base, pickled=BASE in spec.pickled)
            is_pickled = model.removeprefix("experts.") in spec.pickled
            config = adapted_config(Adapter(folder, base=base, pickled=is_pickled))
        else:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(
            folder if has_tokenizer(folder) else spec.base,
            trust_remote_code=False,
            **kind.tokenizer_arguments(config),
        )
    except Exception as error:
        raise ValueError(
            f"{model}: {folder}: config or tokenizer cannot be read: {first_line(error)}"
        ) from error
    return config, tokenizer


def adapted_config(adapter: Adapter) -> Any:
    """Return the config of an adapted model, as transformers has it."""
    from transformers import AutoConfig

    values = dict(adapter.config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _split_rows(
    where: str, task: Task, config: Any, tokenizer: Any, seed: int
) -> dict[SplitName, list[Row]]:
    """Return a task's rows by split; no group and no text is in both."""
    names: dict[SplitName, str | None] = {
        split: getattr(task, split).split or task.split for split in SPLITS
    }
    if task.dataset.harness:
        rows = read_documents(where, task, names, tokenizer)
    else:
        rows = {name: read_rows(where, task, name, config) for name in set(names.values())}
    parts = {split: rows[names[split]] for split in SPLITS}
    if task.dataset.average == "macro":
        _check_members(where, task, parts)
    if parts["search"] is parts["confirm"]:
        parts = divide(parts["search"], task, seed)
    parts = without_leaks(where, parts)
    search, confirm = ({row.member for row in parts[split]} for split in SPLITS)
    if task.dataset.average == "macro" and search != confirm:
        raise ValueError(
            f"{where}.split: every task of {task.dataset.harness} must have rows in both splits,"
            f" but {min(search ^ confirm)} has not"
        )
    return parts


def _check_members(where: str, task: Task, parts: Mapping[SplitName, Sequence[Row]]) -> None:
    """Raise ValueError if fewer rows are asked for than a group has tasks, which count the same."""
    for split, rows in parts.items():
        items, members = getattr(task, split).items, len({row.member for row in rows})
        if items is not None and items < members:
            raise ValueError(
                f"{where}.{split}.items: at least one for each of {members} tasks is needed, but"
                f" got {items}"
            )


def _check_rows(where: str, split: SplitName, rows: Sequence[Row], wanted: int | None) -> None:
    """Raise ValueError if a split has fewer rows than wanted, or one group only."""
    if len(rows) < (wanted or 2):
        raise ValueError(
            f"{where}.{split}.items: at most the rows at hand must be asked for, but got"
            f" {wanted or 2} of {len(rows)}"
        )
    if len({row.group for row in rows}) < 2:
        raise ValueError(
            f"{where}.group: two groups at the least must be in the {split} split, but got one"
        )
