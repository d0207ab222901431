"""How the command line reads models, parameters, tags and places."""

from pathlib import Path

import pytest
import typer

from app.cli.options import place_of, read_models, read_parameters, read_tags


def test_a_model_without_a_weight_leaves_the_weight_to_the_service() -> None:
    assert read_models(["emoji-expert"]) == [{"checkpoint": "emoji-expert"}]


def test_a_weight_follows_the_last_equals_sign() -> None:
    assert read_models(["emoji@3=0.5", "b=-1"]) == [
        {"checkpoint": "emoji@3", "weight": 0.5},
        {"checkpoint": "b", "weight": -1.0},
    ]


def test_a_weight_that_is_no_number_is_refused_with_the_form() -> None:
    with pytest.raises(typer.BadParameter, match=r"'a=heavy' is not a number; expected REF or REF=WEIGHT"):
        read_models(["a=heavy"])


def test_parameters_are_json_where_they_can_be_and_text_otherwise() -> None:
    items = ["density=0.2", "is_weighted=true", "sum=mean", "list=[1, 2]", "empty="]

    assert read_parameters(items) == {
        "density": 0.2,
        "is_weighted": True,
        "sum": "mean",
        "list": [1, 2],
        "empty": "",
    }


def test_not_a_number_goes_to_the_service_as_text() -> None:
    assert read_parameters(["density=NaN"]) == {"density": "NaN"}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert read_tags(["note=a=b"]) == {"note": "a=b"}


@pytest.mark.parametrize("item", ["density", "=0.2"])
def test_an_item_without_a_name_or_value_is_refused(item: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not of the form name=value"):
        read_parameters([item])


def test_none_given_is_none_read() -> None:
    assert read_parameters(None) == {}
    assert read_tags(None) == {}


def test_a_path_becomes_a_file_uri_with_its_characters_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert place_of("my model") == f"{tmp_path.as_uri()}/my%20model"


@pytest.mark.parametrize("uri", ["s3://bucket/model", "file:///models/a", "file:/models/a"])
def test_a_uri_stays_as_it_is(uri: str) -> None:
    assert place_of(uri) == uri
