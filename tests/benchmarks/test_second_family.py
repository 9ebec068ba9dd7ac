"""Second family of experts: its labels say what its texts are."""

import pytest

from benchmarks import second_family
from cabs_search.quickstart.data import articles_of


def _paragraphs() -> dict[str, tuple[str, ...]]:
    """Return the opening paragraph's article, of held-out articles."""
    return {a.paragraphs[0]: a.paragraphs for a in articles_of("heldout")}


def test_pairs_of_paragraphs_are_labelled_by_the_article() -> None:
    articles = _paragraphs()
    for row in second_family.following("heldout"):
        assert (articles[row["text"]][1] == row["other"]) == (row["label"] == 1)
    openings = set(articles)
    for row in second_family.order("heldout"):
        opening = row["text"] if row["label"] else row["other"]
        assert opening in openings


def test_headlines_are_labelled_by_their_topics() -> None:
    topics = {a.title: a.topic for a in articles_of("heldout")}
    rows = second_family.kindred("heldout")
    for row in rows:
        assert (topics[row["text"]] == topics[row["other"]]) == (row["label"] == 1)
        assert row["text"] != row["other"]


@pytest.mark.parametrize("expert", second_family.EXPERTS, ids=lambda expert: expert.name)
def test_no_article_is_in_both_splits_and_labels_are_mixed(expert: second_family.Expert) -> None:
    splits = {split: expert.dataset(split) for split in ("train", "heldout")}
    assert not set(splits["train"]["group"]) & set(splits["heldout"]["group"])
    assert len(splits["train"]) >= expert.items
    share = sum(splits["heldout"]["label"]) / len(splits["heldout"])
    assert 0.25 < share < 0.75


def test_what_tells_a_label_is_taken_out_of_the_text() -> None:
    assert not any('"' in row["text"] for row in second_family.speech("heldout"))
    assert not any(c.isdigit() for c in "".join(second_family.figures("heldout")["text"]))
