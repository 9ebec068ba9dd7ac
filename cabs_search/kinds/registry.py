"""List of the kinds of task, in the order in which errors name them; the first is the default."""

from __future__ import annotations

from cabs_search.kinds.base import Kind
from cabs_search.kinds.choices_by_likelihood import CHOICES_BY_LIKELIHOOD
from cabs_search.kinds.classification import CLASSIFICATION
from cabs_search.kinds.generation import GENERATION
from cabs_search.kinds.greedy_continuation import GREEDY_CONTINUATION
from cabs_search.kinds.language_modeling import LANGUAGE_MODELING
from cabs_search.kinds.multiple_choice import MULTIPLE_CHOICE
from cabs_search.kinds.question_answering import QUESTION_ANSWERING
from cabs_search.kinds.regression import REGRESSION
from cabs_search.kinds.right_choices import RIGHT_CHOICES
from cabs_search.kinds.token_classification import TOKEN_CLASSIFICATION

KINDS: tuple[Kind, ...] = (
    CLASSIFICATION,
    REGRESSION,
    MULTIPLE_CHOICE,
    QUESTION_ANSWERING,
    TOKEN_CLASSIFICATION,
    CHOICES_BY_LIKELIHOOD,
    RIGHT_CHOICES,
    GREEDY_CONTINUATION,
    LANGUAGE_MODELING,
    GENERATION,
)
