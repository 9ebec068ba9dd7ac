"""Six more experts of the quickstart's base, on tasks of their own: a second family to judge on.

Texts are the quickstart's articles and tweets; labels are others. Recipes were written down before
any search was run on the experts, as those of ``cabs_search/quickstart/experts.py``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset

from cabs_search.common.formats import digest
from cabs_search.quickstart.data import SENTIMENTS, Article, Split, articles_of, labelled, tweets
from cabs_search.quickstart.experts import BASE, Expert, make

FAMILY = "second-family"
LENGTH = 40
"""Tokens an item is cut to."""
PLAIN = {"frozen_layers": 0, "max_length": LENGTH, "head_first": False}


def polarity(split: Split) -> Dataset:
    """Return tweets that are negative or positive."""
    ends = (SENTIMENTS.index("negative"), SENTIMENTS.index("positive"))
    rows = [dict(row) for row in tweets(split)]
    chosen = [row | {"label": ends.index(row["label"])} for row in rows if row["label"] in ends]
    return labelled(chosen, ("negative", "positive"))


def speech(split: Split) -> Dataset:
    """Return paragraphs without their quotation marks: whether they had any."""
    return _told_without(split, '"', ("reported", "quoted"))


def figures(split: Split) -> Dataset:
    """Return paragraphs without their digits: whether they had any."""
    return _told_without(split, "[0-9]", ("words", "figures"))


def following(split: Split) -> Dataset:
    """Return pairs of a paragraph and the next one, or one of another article on the topic."""
    rows = []
    for article, other in _pairs_of_articles(split):
        strange = other.paragraphs[len(other.paragraphs) // 2]
        for text, label in ((article.paragraphs[1], 1), (strange, 0)):
            rows.append(_pair(article.paragraphs[0], text, label, article.key))
    return labelled(rows, ("other", "next"))


def kindred(split: Split) -> Dataset:
    """Return pairs of headlines, of one topic or of two."""
    articles = articles_of(split)
    rows = []
    for article, other in _pairs_of_articles(split):
        strangers = [a for a in articles if a.topic != article.topic]
        stranger = strangers[int(article.key, 16) % len(strangers)]
        rows.append(_pair(article.title, other.title, 1, article.key))
        rows.append(_pair(article.title, stranger.title, 0, article.key))
    return labelled(rows, ("other", "same"))


def order(split: Split) -> Dataset:
    """Return an article's first two paragraphs, in their order or the other way round."""
    rows = []
    for article in articles_of(split):
        if len(article.paragraphs) > 1:
            first, second = article.paragraphs[:2]
            rows.append(_pair(first, second, 1, article.key))
            rows.append(_pair(second, first, 0, article.key))
    return labelled(rows, ("turned", "right"))


def _told_without(split: Split, pattern: str, names: tuple[str, str]) -> Dataset:
    rows = [
        {
            "text": re.sub(pattern, "", text),
            "label": int(bool(re.search(pattern, text))),
            "group": article.key,
        }
        for article in articles_of(split)
        for text in article.paragraphs
    ]
    return labelled(rows, names)


def _pairs_of_articles(split: Split) -> Iterator[tuple[Article, Article]]:
    """Yield each article of two paragraphs or more with another one on its topic."""
    by_topic = sorted(articles_of(split), key=lambda article: article.topic)
    for _, group in itertools.groupby(by_topic, key=lambda article: article.topic):
        # some articles stand twice, with another headline
        by_opening = {a.paragraphs[0]: a for a in group if len(a.paragraphs) > 1}
        own = list(by_opening.values())
        yield from zip(own, own[1:] + own[:1], strict=True)


def _pair(text: str, other: str, label: int, article: str) -> dict[str, Any]:
    return {"text": text, "other": other, "label": label, "group": digest(article)}


def _expert(dataset: Callable[[Split], Dataset], **settings: Any) -> Expert:
    return Expert(name=dataset.__name__, dataset=dataset, **(PLAIN | settings))


ONE, TWO = ("text",), ("text", "other")
EXPERTS = (
    _expert(polarity, columns=ONE, items=1500, epochs=3, rate=5e-5),
    _expert(speech, columns=ONE, items=1200, epochs=2, rate=1e-4),
    _expert(
        figures, columns=ONE, items=1000, epochs=2, rate=3e-4, head_first=True, frozen_layers=3
    ),
    _expert(following, columns=TWO, items=1000, epochs=3, rate=1e-4),
    _expert(kindred, columns=TWO, items=1000, epochs=3, rate=3e-5),
    _expert(order, columns=TWO, items=1000, epochs=3, rate=2e-4),
)


def make_experts() -> None:
    """Tune the experts that the cache lacks."""
    make(experts=EXPERTS, family=FAMILY)


def plain_spec() -> dict[str, Any]:
    """Return experts and tasks as a spec has them."""
    tasks = {}
    for expert in EXPERTS:
        tasks[expert.name] = {
            "dataset": {"callable": f"benchmarks.second_family:{expert.name}"},
            "split": "heldout",
            "text": list(expert.columns) if len(expert.columns) > 1 else expert.columns[0],
            "group": "group",
            "max_length": LENGTH,
        }
    experts = {expert.name: f"cache:{FAMILY}/{expert.name}" for expert in EXPERTS}
    return {"base": BASE, "experts": experts, "tasks": tasks}
