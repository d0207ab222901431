"""docs/analyses.md tells every kind, parameters with their defaults, the fields of the data, and shows a figure."""

import json
import re
from pathlib import Path

import pytest
from pydantic import JsonValue

from app.domain.analyses import check_analysis
from app.domain.catalog import AnalysisCard, load_catalog
from app.domain.errors import InvalidParameters
from app.domain.requests import AnalysisRequest

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "analyses.md").read_text(encoding="utf-8")
CATALOG = load_catalog()
EXAMPLES = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
SAME_AS = {"disentanglement_error": "loss_landscape"}  # their parameters


def section(name: str) -> str:
    return PAGE.split(f"\n### `{name}`\n")[1].split("\n### ")[0]


@pytest.mark.parametrize("card", CATALOG.analyses, ids=lambda card: card.name)
def test_each_kind_has_its_section_with_parameters_data_and_a_figure(card: AnalysisCard) -> None:
    text = section(card.name)
    assert f"[`{card.name}`](#{card.name})" in PAGE
    parameters = section(SAME_AS.get(card.name, card.name))
    for name, rule in card.parameters["properties"].items():
        (row,) = [line for line in parameters.splitlines() if line.startswith(f"| `{name}` |")]
        default = rule["default"]
        if isinstance(default, (int, float, str)):
            assert json.dumps(default).strip('"') in row.split("|")[2]
    for name in card.data["properties"]:
        assert f"`{name}`" in text, name
    assert (DOCS / f"analyses/{card.name}.svg").is_file()
    assert f"(analyses/{card.name}.svg)" in text


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_request_that_is_accepted(example: str) -> None:
    request = AnalysisRequest.model_validate_json(example)
    check_analysis(CATALOG, request.kind, request.parameters, n_models=len(request.models), n_tasks=len(request.tasks))


@pytest.mark.parametrize(
    ("method", "way_out"),
    [("fisher", "name a method that does not learn"), ("adamerging", "give it `coefficients`")],
)
def test_a_merge_that_learns_is_refused_with_a_way_out(method: str, way_out: str) -> None:
    with pytest.raises(InvalidParameters, match=way_out) as refusal:
        check_analysis(CATALOG, "feature_distance", {"merge": {"method": method}}, n_models=2, n_tasks=2)
    assert [one.pointer for one in refusal.value.errors] == ["/parameters/merge/method"]


def test_a_merge_with_what_was_learned_before_is_accepted() -> None:
    merge: JsonValue = {"method": "adamerging", "parameters": {"coefficients": {"*": [0.3, 0.4]}}}
    check_analysis(CATALOG, "feature_distance", {"merge": merge}, n_models=2, n_tasks=2)
