"""What the plan promises about passes without a method's code, and what the method's statistics then need."""

import itertools

import pytest

from app.domain.catalog import load_catalog
from workers.catalog import load_method

# A method that takes another one asks for statistics against it; its own tests count those.
CARDS = [card for card in load_catalog().methods if card.produces != "adapter" and not card.nested]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_no_choice_of_options_reads_the_inputs_more_often_than_the_card_says(card) -> None:  # type: ignore[no-untyped-def]
    method = load_method(card.name)
    options = {
        name: rule.get("enum", [False, True])
        for name, rule in card.parameters["properties"].items()
        if "enum" in rule or rule.get("type") == "boolean"
    }
    passes = set()
    for chosen in itertools.product(*options.values()):
        parameters = method.parameters.model_validate(dict(zip(options, chosen, strict=True)))
        passes.add(sum(request.n_passes for request in method.collect(parameters)))
    assert max(passes) <= card.statistic_passes
