"""docs/tasks.md and docs/finetuning.md tell every parameter with its default, and the tasks can be measured on."""

import json
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.domain.catalog import EvaluatorCard, load_catalog
from tests.app.api.house import open_house
from tests.workers import tiny_bert, tiny_language, tiny_vision

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


BLOCKS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)]
TASKS = {block["kind"]: block for block in BLOCKS if "kind" in block}
MODELS: dict[str, Callable[[Path], Path]] = {
    "text-classification": tiny_bert.make_encoder,
    "image-classification": tiny_vision.make_clip,
    "text2text": tiny_language.make_t5,
    "perplexity": tiny_language.make_gpt2,
    "lm-eval": tiny_language.make_gpt2,
}


def write_data(file: Path) -> Path:
    """Write a data file of the form that its name says; what a kind does not read carries nothing."""
    pixels, labels = tiny_vision.make_images(4)
    if file.suffix == ".npz":
        np.savez(file, x=pixels, y=labels)
        return file
    return tiny_bert.write_rows(file, [{"text": f"red is a {file.stem}", "label": label} for label in labels.tolist()])


def test_every_kind_has_an_example() -> None:
    assert sorted(TASKS) == sorted(card.name for card in CATALOG.evaluators)


@pytest.mark.parametrize("kind", sorted(TASKS))
def test_the_example_of_each_kind_is_measured_on(kind: str, tmp_path: Path) -> None:
    body: dict[str, Any] = dict(TASKS[kind])
    with open_house(tmp_path / "house") as house:
        files = {split: write_data(house.data / uri.rpartition("/")[2]) for split, uri in body["dataset"].items()}
        body["dataset"] = {split: file.as_uri() for split, file in files.items()}
        if kind == "text-classification":
            body["preprocessing"] = {"max_tokens": 16}  # a tiny model has few positions
        house.register_folder("model", MODELS[kind](house.data / "model"))
        house.made("/v1/tasks", body)
        job = house.finish("/v1/evaluations", {"checkpoint": "model", "tasks": [body["name"]]})
    if kind == "lm-eval" and find_spec("lm_eval") is None:
        assert "amalgam[harness]" in job["problem"]["detail"]
        return
    assert job["state"] == "succeeded", job["problem"]
    (metric,) = job["result"]["metrics"]
    assert (metric["name"], metric["n"]) == (body.get("metric", CATALOG.evaluator(kind).metrics[0]), 4)
    assert metric["details"]["interval"] is not None


@pytest.mark.parametrize(
    ("card", "page", "name", "rule"), PARAMETERS, ids=[f"{card}-{name}" for card, _, name, _ in PARAMETERS]
)
def test_each_parameter_is_told_with_its_default(card: str, page: str, name: str, rule: dict[str, object]) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert f"`{card}`" in text
    rows = [line.split("|") for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    cells = [row[2].strip(" `") for row in rows]
    is_told = json.dumps(rule["default"]).strip('" ') in cells
    assert is_told or rule["default"] in [_read_number(cell) for cell in cells]


@pytest.mark.parametrize("card", CATALOG.evaluators, ids=lambda card: card.name)
def test_heads_and_metrics_are_told(card: EvaluatorCard) -> None:
    for word in (*card.heads, *card.metrics):
        assert f"`{word}`" in PAGE


def _read_number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
