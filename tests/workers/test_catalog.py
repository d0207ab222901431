"""The catalog: found from files, committed as JSON, strict about names."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from app.domain.catalog import CATALOG_PATH, Catalog, load_catalog
from app.domain.errors import MethodNotFound
from app.domain.parameters import Parameters
from workers import catalog, methods
from workers.catalog import CatalogFault
from workers.contract import MergeContext, MergeMethod, merge_method


def test_the_committed_catalog_is_what_the_code_says() -> None:
    assert catalog.main(["--check"]) == 0


def test_every_file_of_methods_is_a_method() -> None:
    files = {path.stem for path in Path(methods.__path__[0]).glob("*.py")} - {"__init__"}
    assert {method.card.name for method in catalog.find_methods()} == files


def test_the_file_is_written_as_it_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "catalog.json"
    assert catalog.main([], path=path) == 0
    assert catalog.main(["--check"], path=path) == 0
    assert path.read_text(encoding="utf-8") == CATALOG_PATH.read_text(encoding="utf-8")
    assert path.read_text(encoding="utf-8").endswith("}\n")


def test_drift_is_shown_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "catalog.json"
    document = json.loads(CATALOG_PATH.read_text(encoding="utf-8"))
    title = document["methods"][0]["title"]
    document["methods"][0]["title"] = "Something else"
    path.write_text(catalog.render(Catalog.model_validate(document)), encoding="utf-8")
    assert catalog.main(["--check"], path=path) == 1
    shown = capsys.readouterr().out
    assert '-      "title": "Something else",' in shown
    assert f'+      "title": "{title}",' in shown
    assert "run `make catalog`" in shown


def test_a_missing_file_is_drift(tmp_path: Path) -> None:
    assert catalog.main(["--check"], path=tmp_path / "none.json") == 1


def test_methods_are_loaded_by_name_or_alias() -> None:
    assert catalog.load_method("uniform_soup").card.name == "average"
    assert catalog.load_method("ties").card == load_catalog().method("ties")


def test_an_unknown_method_is_refused_with_its_neighbor() -> None:
    with pytest.raises(MethodNotFound, match="Did you mean 'ties'"):
        catalog.load_method("tiez")


def test_a_name_claimed_twice_is_refused() -> None:
    with pytest.raises(CatalogFault, match=r"'linear' is claimed by methods\.a and methods\.b; rename one of them"):
        catalog.refuse_collisions([("linear", "methods.a"), ("mean", "methods.a"), ("linear", "methods.b")])


def test_a_file_without_a_method_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty_method.py").write_text('"""Nothing."""\n', encoding="utf-8")
    with pytest.raises(CatalogFault, match="holds 0 of MergeMethod; expected exactly one"):
        _find_in(tmp_path, monkeypatch)


def test_a_file_named_unlike_its_method_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = "from tests.workers.test_catalog import make_method\nmerge = make_method('right')\n"
    (tmp_path / "wrong.py").write_text(source, encoding="utf-8")
    with pytest.raises(CatalogFault, match="holds the method 'right'; a method's file is named like it"):
        _find_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("method", catalog.find_methods(), ids=lambda method: method.card.name)
def test_every_parameter_has_a_default_and_a_description(method: MergeMethod) -> None:
    properties: dict[str, Any] = method.card.parameters["properties"]
    assert all("default" in rule and len(rule["description"]) > 20 for rule in properties.values())
    assert method.card.parameters["additionalProperties"] is False


@pytest.mark.parametrize("method", catalog.find_methods(), ids=lambda method: method.card.name)
def test_the_effective_parameters_of_an_empty_request_are_accepted(method: MergeMethod) -> None:
    weights = [1.0] * method.card.min_models
    _, effective = load_catalog().check(method.card.name, {}, has_base_model=True, weights=weights)
    method.parameters.model_validate(effective)


def make_method(name: str) -> MergeMethod:
    """Return a method that does nothing, for files written by these tests."""

    def merge(_base: Any, finetuned: Any, _parameters: Parameters, _context: MergeContext) -> Any:
        return finetuned[0]

    return merge_method(
        name=name,
        title="A title",
        summary="A summary.",
        source="nobody",
        parameters=Parameters,
        base_model="unused",
        models=(1, None),
        granularity="element",
    )(merge)


def _find_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("found_methods")
    package.__path__ = [str(folder)]
    monkeypatch.setitem(sys.modules, "found_methods", package)
    monkeypatch.setattr(catalog, "methods", package)
    catalog.find_methods()
