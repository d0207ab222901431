"""What the plan promises about passes without a method's code, and what the method's statistics then need."""

import itertools
from importlib import import_module

import pytest
from pydantic import JsonValue

from app.domain.catalog import MethodCard, StepCard, count_passes, count_rounds, load_catalog
from workers.catalog import load_method
from workers.contract import LocalStatistic, MergeMethod, PostStep, Transform

# A method that takes another one asks for statistics against it; its own tests count those.
METHODS = [card for card in load_catalog().methods if card.produces != "adapter" and not card.nested]
STEPS = [*load_catalog().transforms, *load_catalog().post_steps]


def check_passes(card: MethodCard | StepCard, code: MergeMethod | Transform | PostStep) -> None:
    """Check the card against what the code asks for, under every choice of options and at what spares a pass."""
    special: dict[str, list[JsonValue]] = {}
    for where in (*card.spared_passes, *getattr(card, "local_where", ())):
        for name, value in where.items():
            special.setdefault(name, []).append(value)
    options = {
        name: list(dict.fromkeys([*special.get(name, ()), *rule.get("enum", [0.5])]))
        for name, rule in card.parameters["properties"].items()
        if "enum" in rule or name in special
    } | {name: [False, True] for name, rule in card.parameters["properties"].items() if rule.get("type") == "boolean"}
    passes = set()
    for chosen in itertools.product(*options.values()):
        parameters = code.parameters.model_validate(dict(zip(options, chosen, strict=True)))
        requests, effective = code.collect(parameters), [parameters.model_dump(mode="json")]
        n_passes = sum(request.n_passes for request in requests)
        assert count_passes(card, effective) == n_passes
        if isinstance(card, MethodCard):
            is_local = all(isinstance(one, LocalStatistic) and one.is_local for one in requests)
            assert count_rounds(card, effective) == (0 if is_local else n_passes)
        passes.add(n_passes)
    assert max(passes) == card.statistic_passes


@pytest.mark.parametrize("card", METHODS, ids=lambda card: card.name)
def test_a_method_reads_the_inputs_as_often_as_its_card_says(card: MethodCard) -> None:
    check_passes(card, load_method(card.name))


@pytest.mark.parametrize("card", STEPS, ids=lambda card: card.name)
def test_a_step_reads_the_inputs_as_often_as_its_card_says(card: StepCard) -> None:
    package = "transforms" if card in load_catalog().transforms else "post_steps"
    check_passes(card, import_module(f"workers.{package}.{card.name}").apply)
