"""Every method has a page that names its parameters, defaults and aliases, and whose examples are true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.domain.catalog import MethodCard, load_catalog
from tests.workers.adapter_methods.golden import merge_adapter_example
from tests.workers.methods.golden import TASK_VECTORS, merge_example, patch_example

PAGES = Path(__file__).parents[2] / "docs" / "methods"
METHODS = load_catalog().methods
every_method = pytest.mark.parametrize("card", METHODS, ids=lambda card: card.name)


def _page(card: MethodCard) -> str:
    return (PAGES / f"{card.name}.md").read_text(encoding="utf-8")


def _examples() -> list[dict[str, Any]]:
    blocks = [block for card in METHODS for block in re.findall(r"```json\n(.*?)\n```", _page(card), re.DOTALL)]
    return [json.loads(block) for block in blocks]


@every_method
def test_a_page_names_the_method_its_source_and_its_aliases(card: MethodCard) -> None:
    page = _page(card)
    assert page.startswith(f"# `{card.name}`\n")
    assert [alias for alias in card.aliases if f"`{alias}`" not in page] == []
    number = re.search(r"arXiv:[\d.]+\d", card.source)
    assert number is None or number.group() in page


@every_method
def test_a_page_has_a_row_for_every_parameter_with_its_choices_and_default(card: MethodCard) -> None:
    lines = [line.split("|") for line in _page(card).splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): cells for cells in lines}
    for name, rule in card.parameters["properties"].items():
        scope_to_default = " ".join(rows[name][2:5])
        assert [choice for choice in rule.get("enum", []) if f"`{choice}`" not in scope_to_default] == []
        assert _shown(rule["default"]) in rows[name][4], name


def _shown(default: Any) -> str:
    if isinstance(default, str):
        return default
    return f"{default:g}" if isinstance(default, float) else json.dumps(default)


@every_method
def test_the_index_links_every_page(card: MethodCard) -> None:
    assert f"[`{card.name}`]({card.name}.md)" in (PAGES / "README.md").read_text(encoding="utf-8")


@every_method
def test_a_page_has_an_example(card: MethodCard) -> None:
    assert card.name in {example["method"] for example in _examples()}


@pytest.mark.parametrize("example", _examples(), ids=lambda example: example["method"])
def test_the_examples_are_true(example: dict[str, Any]) -> None:
    if "adapters" in example:
        rows = merge_adapter_example(example)
        assert rows == [pytest.approx(row, abs=1e-6) for row in example["result"]]
        return
    n_models = example.get("models", 3)
    weights = example.get("weights", [1.0] * n_models)
    found = merge_example(example["method"], example["parameters"], weights, TASK_VECTORS[:n_models])
    assert found == pytest.approx(example["result"], abs=1e-6)
    if "tasks" in example:
        tasks = patch_example(example["method"], example["parameters"], weights, TASK_VECTORS[:n_models])
        assert tasks == [pytest.approx(task, abs=1e-6) for task in example["tasks"]]


@pytest.mark.parametrize("card", [card for card in METHODS if card.produces == "multitask"], ids=lambda card: card.name)
def test_a_page_of_a_multitask_method_shows_the_tasks_of_an_example(card: MethodCard) -> None:
    assert any(example["method"] == card.name and "tasks" in example for example in _examples())


def test_every_page_is_of_a_method() -> None:
    pages = {page.stem for page in PAGES.glob("*.md")} - {"README"}
    assert pages == {card.name for card in METHODS}


def test_the_parity_page_has_no_surprise() -> None:
    page = (PAGES.parent / "parity.md").read_text(encoding="utf-8")
    assert "**not as expected**" not in page
    assert [card.name for card in METHODS if f"`{card.name}`" not in page] == []
