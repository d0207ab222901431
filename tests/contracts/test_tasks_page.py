"""docs/tasks.md and docs/finetuning.md tell every parameter of every evaluator and technique, with its default."""

import json
from pathlib import Path

import pytest

from app.domain.catalog import EvaluatorCard, load_catalog

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")
CATALOG = load_catalog()
CARDS = {
    **{card.name: ("tasks.md", card.parameters) for card in CATALOG.evaluators},
    **{card.name: ("finetuning.md", card.parameters) for card in CATALOG.finetuners},
}
PARAMETERS = [
    (card, page, name, rule) for card, (page, schema) in CARDS.items() for name, rule in schema["properties"].items()
]


@pytest.mark.parametrize(
    ("card", "page", "name", "rule"), PARAMETERS, ids=[f"{card}-{name}" for card, _, name, _ in PARAMETERS]
)
def test_each_parameter_is_told_with_its_default(card: str, page: str, name: str, rule: dict[str, object]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert f"`{card}`" in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    assert rule["default"] in [_read_default(cells[2].strip(" `")) for cells in rows]


@pytest.mark.parametrize("card", CATALOG.evaluators, ids=lambda card: card.name)
def test_heads_and_metrics_are_told(card: EvaluatorCard) -> None:
    for word in (*card.heads, *card.metrics):
        assert f"`{word}`" in PAGE


def _read_default(cell: str) -> object:
    try:
        return json.loads(cell)
    except ValueError:
        return cell
