"""Every transform and post-step has a page: its parameters, their ranges and defaults, and examples that are true."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from app.domain.catalog import StepCard, StepKind, load_catalog
from tests.workers.memory import MemoryMerge
from tests.workers.methods.golden import TASK_VECTORS
from workers.catalog import find_post_steps, find_transforms, load_method

DOCS = Path(__file__).parents[2] / "docs"
STEPS: list[tuple[StepKind, StepCard]] = [
    *(("transforms", card) for card in load_catalog().transforms),
    *(("post_steps", card) for card in load_catalog().post_steps),
]
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
every_step = pytest.mark.parametrize(("kind", "card"), STEPS, ids=[card.name for _, card in STEPS])


def page_of(card: StepCard) -> str:
    return (DOCS / "steps" / f"{card.name}.md").read_text(encoding="utf-8")


def examples() -> list[dict[str, Any]]:
    blocks = [block for _, card in STEPS for block in re.findall(r"```json\n(.*?)\n```", page_of(card), re.DOTALL)]
    return [json.loads(block) for block in blocks]


@every_step
def test_a_page_names_the_step_its_kind_and_its_source(kind: StepKind, card: StepCard) -> None:
    page = page_of(card)
    assert page.startswith(f"# `{card.name}`\n")
    assert f"- **Kind** {kind.removesuffix('s').replace('_', '-')}, " in page
    number = re.search(r"arXiv:[\d.]+\d", card.source)
    assert number is not None
    assert number.group() in page
    assert "\n## Edge cases\n" in page
    assert page.count("**Passes** none") == (card.statistic_passes == 0)


@every_step
def test_a_page_has_a_row_for_every_parameter_with_its_range_and_default(kind: StepKind, card: StepCard) -> None:
    assert kind in ("transforms", "post_steps")
    lines = [line.split("|") for line in page_of(card).splitlines() if line.startswith("| `")]
    rows = {cells[1].strip(" `"): [cell.replace("−", "-").replace(",", "") for cell in cells] for cells in lines}
    assert set(rows) == set(card.parameters["properties"])
    for name, rule in card.parameters["properties"].items():
        choices, bounds = rows[name][3], [one for some in rule.get("anyOf", [rule]) for one in _bounds(some)]
        assert [choice for choice in rule.get("enum", []) if f"`{choice}`" not in choices] == []
        assert [bound for bound in bounds if f"{bound:g}" not in re.findall(r"-?[\d.]+", choices)] == [], name
        assert ("null" in choices) == ("anyOf" in rule)
        assert _shown(rule["default"]) in rows[name][4], name


def _bounds(rule: dict[str, Any]) -> list[float]:
    return [rule[name] for name in BOUNDS if name in rule]


def _shown(default: Any) -> str:
    if isinstance(default, str):
        return default
    return f"{default:g}" if isinstance(default, float) else json.dumps(default).replace(",", "")


@every_step
def test_the_recipes_link_every_page_and_a_page_has_an_example(kind: StepKind, card: StepCard) -> None:
    row = f"| [`{card.name}`](steps/{card.name}.md) | {kind.removesuffix('s').replace('_', '-')} |"
    assert row in (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert card.name in {example["step"] for example in examples()}


@pytest.mark.parametrize("example", examples(), ids=lambda example: example["step"])
def test_the_examples_are_true(example: dict[str, Any]) -> None:
    n_blocks = example.get("blocks", 1)
    names = ["w"] if n_blocks == 1 else [f"layers.{index}.w" for index in range(n_blocks)]
    models = [
        {name: part.view(1, -1) for name, part in zip(names, vector.chunk(n_blocks), strict=True)}
        for vector in TASK_VECTORS
    ]
    base = {name: torch.zeros_like(part) for name, part in models[0].items()}
    transforms = {step.card.name: step for step in find_transforms()}
    post_steps = {step.card.name: step for step in find_post_steps()}
    name, values = example["step"], example["step_parameters"]
    placed: dict[str, Any] = (
        {"transforms": [(transforms[name], values)]}
        if name in transforms
        else {"post_steps": [(post_steps[name], values)]}
    )
    merged = MemoryMerge(load_method(example["method"]), example["parameters"], **placed)(base, models)
    found = torch.cat([merged[name].flatten() for name in names])
    assert found.tolist() == pytest.approx(example["result"], abs=1e-6)


def test_every_page_is_of_a_step() -> None:
    assert {page.stem for page in (DOCS / "steps").glob("*.md")} == {card.name for _, card in STEPS}
