"""docs/tasks.md tells every parameter of every evaluator and technique, with its default."""

import json
from pathlib import Path

import pytest

from app.domain.catalog import EvaluatorCard, load_catalog

PAGE = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
CATALOG = load_catalog()
CARDS = {
    **{card.name: card.parameters for card in CATALOG.evaluators},
    **{card.name: card.parameters for card in CATALOG.finetuners},
}
PARAMETERS = [(card, name, rule) for card, schema in CARDS.items() for name, rule in schema["properties"].items()]


@pytest.mark.parametrize(("card", "name", "rule"), PARAMETERS, ids=[f"{card}-{name}" for card, name, _ in PARAMETERS])
def test_each_parameter_is_told_with_its_default(card: str, name: str, rule: dict[str, object]) -> None:
    assert f"`{card}`" in PAGE
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith(f"| `{name}` |")]
    defaults = [cells[2].strip(" `").replace("e-5", "e-05") for cells in rows]
    assert json.dumps(rule["default"]).strip('"') in defaults


@pytest.mark.parametrize("card", CATALOG.evaluators, ids=lambda card: card.name)
def test_heads_and_metrics_are_told(card: EvaluatorCard) -> None:
    for word in (*card.heads, *card.metrics):
        assert f"`{word}`" in PAGE
