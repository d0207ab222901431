"""Random requests for merges, made from the cards: mostly right, often at the edge of what is allowed, some wrong."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from app.domain.catalog import Catalog, MethodCard, StepCard
from tests.workers.random_models import MODELS

Rule = Mapping[str, Any]  # of a JSON Schema

WRONG = 0.01  # of the values
FAR = 12  # integers beyond this are hardly drawn: steps take time
GLOBS = ("*", "*bias", "model.layers.*", "model.layers.0.*", "*weight", "model.s*", "nothing*", "[", "model.one")
WEIGHTS = (1.0, 1.0, 1.0, 0.5, 2.0, 0.0, -1.0, 1e6, 1e-30)
ODD: tuple[JsonValue, ...] = (None, "x", -1, 1e300, 2**63, [], {}, True, [0.1], [0.0, 1.0, 2.0])


def draw_request(chance: random.Random, catalog: Catalog) -> dict[str, JsonValue]:
    """Return the body of a request; `base` and `model-0`, … are the references of a set's checkpoints."""
    card = chance.choice([card for card in catalog.methods if card.accepts_dense and card.data == "none"])
    n_models = _draw_count(chance, card)
    request: dict[str, JsonValue] = {
        "method": card.name if chance.random() > WRONG else "tie",
        "models": [_draw_model(chance, card, index) for index in range(n_models)],
        "parameters": draw_parameters(chance, card.parameters),
        "seed": chance.choice((0, 1, 2**63 - 1)),
    }
    request["parameters"] |= _draw_nested(chance, card, catalog)  # type: ignore[operator]  # it is an object
    if card.base_model == "required" or chance.random() < 0.7:
        request["base_model"] = "base"
    request["output"] = {"dtype": chance.choice((None, None, "float32", "float16", "bfloat16"))}
    request["nan_policy"] = chance.choice(("fail", "fail", "zero"))
    request["tensors"] = chance.choice(("strict", "strict", "intersection"))
    request["merge_buffers"] = chance.random() < 0.8
    return request | _draw_parts(chance, card, catalog, n_models)


def _draw_nested(chance: random.Random, card: MethodCard, catalog: Catalog) -> dict[str, JsonValue]:
    """Return methods inside the method."""
    inner = {name: chance.choice(catalog.methods) for name in card.nested if chance.random() < 0.7}
    return {
        name: {"method": one.name, "parameters": draw_parameters(chance, one.parameters)} for name, one in inner.items()
    }


def _draw_parts(chance: random.Random, card: MethodCard, catalog: Catalog, n_models: int) -> dict[str, JsonValue]:
    """Return what holds for some tensors, and what stands before and after the method."""
    request: dict[str, JsonValue] = {}
    for name in ("include", "exclude"):
        if chance.random() < 0.2:
            request[name] = [chance.choice(GLOBS) for _ in range(chance.randint(1, 2))]
    if chance.random() < 0.25:
        request["overrides"] = [_draw_override(chance, card, n_models) for _ in range(chance.randint(1, 3))]
    for kind, steps in (("transforms", catalog.transforms), ("post_steps", catalog.post_steps)):
        if chance.random() < 0.2:
            request[kind] = [_draw_step(chance, steps) for _ in range(chance.randint(1, 2))]
    return request


def draw_parameters(chance: random.Random, schema: Rule) -> dict[str, JsonValue]:
    """Return some of the parameters of a schema."""
    drawn: dict[str, JsonValue] = {}
    for name, rule in schema.get("properties", {}).items():
        if chance.random() < 0.4:
            drawn[name] = draw_value(chance, rule)
            if rule.get("type") == "number" and chance.random() < 0.1:
                drawn[name] = [draw_value(chance, rule) for _ in range(chance.randint(1, 3))]
    if chance.random() < WRONG:
        drawn["densty"] = 0.5
    return drawn


def draw_value(chance: random.Random, rule: Rule) -> JsonValue:
    """Return a value of a rule, or rarely one of none."""
    if chance.random() < WRONG:
        return chance.choice(ODD)
    if "anyOf" in rule:
        return draw_value(chance, chance.choice(rule["anyOf"]))
    if "enum" in rule:
        value: JsonValue = chance.choice(list(rule["enum"]))
        return value
    kind = rule.get("type")
    if kind == "boolean":
        return chance.random() < 0.5
    if kind in ("number", "integer"):
        return _draw_number(chance, rule)
    if kind == "array":
        return [draw_value(chance, rule["items"]) for _ in range(chance.randint(0, 2))]
    if kind == "object":
        return dict(draw_parameters(chance, rule))
    return chance.choice(GLOBS) if kind == "string" else None


def _draw_number(chance: random.Random, rule: Rule) -> float | int:
    least = rule.get("minimum", rule.get("exclusiveMinimum", -2.0))
    most = rule.get("maximum", rule.get("exclusiveMaximum", 2.0))
    if rule["type"] == "integer":
        return chance.choice((int(least), chance.randint(int(least), int(min(most, least + FAR)))))
    step = 1e-9 * max(1.0, abs(least))
    low = least + step if "exclusiveMinimum" in rule else least
    high = most - step if "exclusiveMaximum" in rule else most
    default = rule.get("default")
    usual = default if isinstance(default, float) else low
    return chance.choice((low, high, usual, chance.uniform(low, high), math.nextafter(high, low)))


def _draw_count(chance: random.Random, card: MethodCard) -> int:
    if chance.random() < WRONG:
        return chance.randint(1, MODELS)
    return chance.randint(card.min_models, min(card.max_models or MODELS, MODELS))


def _draw_model(chance: random.Random, card: MethodCard, index: int) -> dict[str, JsonValue]:
    model: dict[str, JsonValue] = {"checkpoint": f"model-{index}", "task": f"task-{index}"}
    if chance.random() < (0.3 if card.weights != "unused" else WRONG):
        weight = chance.choice(WEIGHTS)
        model["weight"] = abs(weight) if card.weights == "non_negative" else weight
    if card.per_model and chance.random() < 0.2:
        rules = card.parameters["properties"]
        model["parameters"] = {name: draw_value(chance, rules[name]) for name in card.per_model}
    return model


def _draw_override(chance: random.Random, card: MethodCard, n_models: int) -> dict[str, JsonValue]:
    override: dict[str, JsonValue] = {
        "match": chance.choice(GLOBS),
        "parameters": {
            name: value for name, value in draw_parameters(chance, card.parameters).items() if name not in card.nested
        },
    }
    if card.weights != "unused" and chance.random() < 0.5:
        weights: tuple[JsonValue, ...] = (None, 0.5, [1.0, 0.0], 2.0)
        override["weights"] = [chance.choice(weights) for _ in range(n_models)]
    return override


def _draw_step(chance: random.Random, steps: Sequence[StepCard]) -> dict[str, JsonValue]:
    card = chance.choice(steps)
    return {"name": card.name, "parameters": draw_parameters(chance, card.parameters)}
