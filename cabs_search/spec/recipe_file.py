r"""A recipe as a YAML file: the models, the method with its settings, and every λ.

```yaml
base: FacebookAI/roberta-base
experts: {mrpc: ./experts/mrpc, rte: ./experts/rte}
method: cabs
nm: '64:256'
order: [mrpc, rte]
overlap: fill
tail: keep
groups: {lower: 'layer\.[0-5]\.', rest: .}
lambda: {mrpc: {lower: 0.8, rest: 1.2}, rte: 1.1}
```

With ``layers: 12`` in place of ``groups``, λ are values at anchors spread evenly from the first
of so many layers to the last: ``lambda: {mrpc: [0.8, 1.0, 1.2], rte: 1.1}``.

``stack: [{model: mrpc, layer_range: [0, 8]}, {model: merged, layer_range: [6, 12], scale: 0.9}]``
puts these layers in the place of the merge's own. ``layer_range`` ends before its second number, as
in mergekit; ``base`` and ``merged`` are models as well.

An export's ``recipe.json`` is read as well; it names no models. Errors name file and field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cabs_search.checkpoints.vocabulary import SAME
from cabs_search.merging.layers import LEAST_ANCHORS, MOST_LAYERS, check_anchors
from cabs_search.merging.masks.rules import SETTINGS, settings
from cabs_search.merging.masks.settings import collapsed
from cabs_search.merging.method import Method, make_method, rule_of
from cabs_search.merging.recipe import BASE, Groups, LambdaKey, Recipe, anchor_names, make_recipe
from cabs_search.merging.stack import parse_stack
from cabs_search.spec.fields import STRICT, Name
from cabs_search.spec.load import dump_plain, one_line
from cabs_search.spec.locations import path_of
from cabs_search.spec.space import MethodName, Pattern

Dtype = Literal["float32", "bfloat16", "float16"]
Vocabulary = Literal["same", "common-rows"]
WHAT = "recipe"


@dataclass(frozen=True, kw_only=True)
class RecipeFile:
    """A recipe with the models that it is for."""

    recipe: Recipe
    base: str | None = None
    """Location of the base; None: the file does not say."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """Locations by expert; empty: the file does not say."""
    vocabulary: str = SAME
    dtype: str | None = None
    """Data type of the merged weights; None: the base's own."""
    heads: Mapping[str, str] | None = None
    """Expert whose head is written, by the folder's name; None: each expert's own."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, from which ``parse_recipe`` makes an equal one."""
        recipe = self.recipe
        models: dict[str, Any] = {"base": self.base} if self.base else {}
        models |= {"experts": dict(self.experts)} if self.experts else {}
        plain = {k: v for k, v in recipe.as_dict().items() if k not in ("groups", "lambda")}
        groups: dict[str, Any] = {"groups": dict(recipe.groups)} if recipe.groups else {}
        lambdas: dict[str, Any] = {}
        for key, value in recipe.lambdas:
            if recipe.groups:
                lambdas.setdefault(key.expert, {})[key.group] = value
            elif recipe.layers:
                lambdas.setdefault(key.expert, []).append(value)
            else:
                lambdas[key.expert] = value
        rest: dict[str, Any] = {} if self.vocabulary == SAME else {"vocabulary": self.vocabulary}
        rest |= {"dtype": self.dtype} if self.dtype else {}
        rest |= {"heads": dict(self.heads)} if self.heads is not None else {}
        return models | plain | groups | {"lambda": lambdas} | rest

    def as_yaml(self) -> str:
        """Return the file's text."""
        return dump_plain(self.as_dict())


@checked(frozen=True, kw_only=True, config=STRICT)
class _Fields:
    """Fields of the file, but for the method's settings."""

    method: MethodName
    lambda_: Any = Field(alias="lambda")
    """One number, or numbers by expert, or by expert and group, or lists of numbers at anchors by
    expert; read by ``_lambdas``.
    """
    base: str | None = None
    experts: dict[Name, str] = Field(default_factory=dict)
    groups: dict[str, Pattern] = Field(default_factory=dict)
    layers: Annotated[int, Field(ge=LEAST_ANCHORS, le=MOST_LAYERS)] | None = None
    stack: Any = None
    """Layers, read by ``parse_stack``."""
    vocabulary: Vocabulary = "same"
    dtype: Dtype | None = None
    heads: dict[Name, str] | None = None


def parse_recipe(values: Mapping[str, Any], source: str, folder: Path) -> RecipeFile:
    """Make a recipe from plain values.

    Args:
        values: the content of a file.
        source: its name in errors.
        folder: start of relative folders.

    Raises:
        ValueError: a field is missing, unknown or wrong.

    """
    given = {name: value for name, value in values.items() if name in SETTINGS}
    rest = {str(name): v for name, v in values.items() if name not in SETTINGS}
    try:
        fields = TypeAdapter(_Fields).validate_python(_nested(rest))
        experts = _experts(fields)
        recipe = make_recipe(
            _method(fields.method, given, experts),
            _lambdas(fields, experts),
            tuple(fields.groups.items()),
            fields.layers or 0,
            () if fields.stack is None else parse_stack(fields.stack, experts, BASE),
        )
        _check_heads(fields.heads or {}, experts)
    except ValidationError as error:
        raise ValueError(f"{source}: {one_line(error)}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return RecipeFile(
        recipe=recipe,
        base=fields.base and located(fields.base, folder),
        experts={name: located(fields.experts[name], folder) for name in fields.experts},
        vocabulary=fields.vocabulary,
        dtype=fields.dtype,
        heads=fields.heads,
    )


def located(text: str, folder: Path) -> str:
    """Return a location that does not depend on the working directory."""
    path = path_of(text, folder)
    return str(path.absolute()) if path and text else text


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return values in which groups and λ of a ``recipe.json`` are as the YAML has them."""
    groups, lambdas = values.get("groups"), values.get("lambda")
    if "layers" in values and isinstance(lambdas, Mapping) and all("." in str(k) for k in lambdas):
        return values | {"lambda": _numbered(lambdas)}
    is_json = isinstance(groups, list) and all(
        isinstance(group, list) and len(group) == 2 for group in groups
    )
    if not (is_json and isinstance(lambdas, Mapping)):
        return values
    nested: dict[str, Any] = {}
    for name, value in lambdas.items():
        expert, _, group = str(name).partition(".")
        nested.setdefault(expert, {})[group] = value
    return values | {"groups": dict(map(tuple, groups)), "lambda": nested}  # type: ignore[arg-type]


def _numbered(lambdas: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the values at anchors by expert, in the order of the anchors' numbers."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in lambdas.items():
        expert, _, anchor = str(name).partition(".")
        found.setdefault(expert, {})[anchor] = value
    lists: dict[str, list[Any]] = {}
    for expert, own in found.items():
        names = anchor_names(len(own))
        if own.keys() != set(names):
            raise ValueError(
                f"lambda: anchors must be {expert}.1 to {expert}.{len(own)}, but got"
                f" {', '.join(f'{expert}.{name}' for name in own)}"
            )
        lists[expert] = [own[name] for name in names]
    return lists


def _experts(fields: _Fields) -> tuple[str, ...]:
    """Return the experts in their order. Raises ValueError unless each one has λ."""
    if not isinstance(fields.lambda_, Mapping):
        if not fields.experts:
            raise ValueError("experts: must name the experts where lambda is one number")
        return tuple(fields.experts)
    experts = tuple(fields.experts or fields.lambda_)
    if set(experts) != set(fields.lambda_):
        raise ValueError(
            f"lambda: must have a value for each expert ({', '.join(experts)}), but got"
            f" {', '.join(map(str, fields.lambda_))}"
        )
    if not experts or BASE in experts:
        name = f"must not be called {BASE}" if experts else "is needed"
        raise ValueError(f"experts: an expert {name}")
    return experts


def _method(name: str, given: Mapping[str, Any], experts: tuple[str, ...]) -> Method:
    """Make the method. Raises ValueError if a setting is wrong, or another method's."""
    own = settings(rule_of(name))
    read: dict[str, Any] = {}
    for key, value in given.items():
        if value is None:  # as if it were not there
            continue
        if key not in own:
            known = ", ".join(own) or "no settings"
            raise ValueError(f"{key}: {name} does not use it; it has {known}")
        setting = SETTINGS[key]
        try:
            if not isinstance(value, Mapping):
                read[key] = setting.resolve(value, experts, {})
            elif setting.is_per_expert and set(value) == set(experts):
                read[key] = collapsed({e: setting.parse(value[e]) for e in experts})
            else:
                whose = "expert's" if setting.is_per_expert else "one"
                raise ValueError(f"the value must be {whose} ({', '.join(experts)})")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{key}: {error}") from None
    return make_method(name, experts, **read)


def _lambdas(fields: _Fields, experts: tuple[str, ...]) -> dict[LambdaKey, float]:
    """Return λ by expert and group. Raises ValueError if a group has none, or is unknown."""
    given = fields.lambda_
    each = {e: given[e] if isinstance(given, Mapping) else given for e in experts}
    if fields.layers:
        return _at_anchors(each, fields.layers)
    groups: Groups = tuple(fields.groups.items())
    names = [name for name, _ in groups] or [""]
    found: dict[LambdaKey, float] = {}
    for expert, own in each.items():
        if isinstance(own, Mapping) and set(own) != set(fields.groups):
            raise ValueError(
                f"lambda.{expert}: must have a value for each of groups"
                f" ({', '.join(fields.groups)}), but got {', '.join(map(str, own))}"
            )
        for name in names:
            key = LambdaKey(expert, name)
            found[key] = _number(f"lambda.{key}", own[name] if isinstance(own, Mapping) else own)
    return found


def _at_anchors(each: Mapping[str, Any], layers: int) -> dict[LambdaKey, float]:
    """Return λ by expert and anchor. Raises ValueError unless all have as many, as layers allow."""
    counts = {len(own): expert for expert, own in each.items() if isinstance(own, list)}
    if len(counts) > 1:
        raise ValueError(
            "lambda: every expert must have as many values as the others, but"
            f" {' and '.join(f'{expert} has {count}' for count, expert in counts.items())}"
        )
    count = next(iter(counts), LEAST_ANCHORS)
    try:
        check_anchors(count, layers)
    except ValueError as error:
        raise ValueError(f"lambda: {error}") from None
    found: dict[LambdaKey, float] = {}
    for expert, own in each.items():
        values = own if isinstance(own, list) else [own] * count
        for name, value in zip(anchor_names(count), values, strict=True):
            key = LambdaKey(expert, name)
            found[key] = _number(f"lambda.{key}", value)
    return found


def _number(field: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{field}: a number is needed, but got {value!r:.100}")
    return float(value)


def _check_heads(heads: Mapping[str, str], experts: tuple[str, ...]) -> None:
    for name, expert in heads.items():
        if expert not in (*experts, BASE):
            raise ValueError(
                f"heads.{name}: an expert must be named ({', '.join(experts)}), but got {expert}"
            )
