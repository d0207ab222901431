"""Ids sort by time, names stay off the id prefixes, refs parse."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.domain.identifiers import Name, Reference, is_id, new_id, parse_reference

NAME = TypeAdapter(Name)


def test_an_id_is_a_prefixed_uuid_of_version_7() -> None:
    text = new_id("job").removeprefix("job_")
    assert len(text) == 32
    assert text[12] == "7"
    assert text[16] in "89ab"


def test_ids_made_later_sort_later() -> None:
    first = new_id("ckpt")
    time.sleep(0.002)
    assert first < new_id("ckpt")


def test_ids_do_not_repeat() -> None:
    assert len({new_id("art") for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize("name", ["a", "bert-tickets", "A.b_c-9", "x" * 128, "jobs_of_mine", "ckpt"])
def test_good_names_pass(name: str) -> None:
    assert NAME.validate_python(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".hidden", "a b", "a/b", "x" * 129, "ckpt_mine", "job_1", "naïve", "a\n"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        NAME.validate_python(name)


def test_refs_have_five_forms() -> None:
    identifier = new_id("ckpt")
    assert parse_reference(identifier) == Reference(id=identifier)
    assert parse_reference("minilm") == Reference(name="minilm")
    assert parse_reference("minilm@3") == Reference(name="minilm", version=3)
    assert parse_reference("minilm@prod") == Reference(name="minilm", alias="prod")
    assert parse_reference("sha256:" + "a" * 64) == Reference(content_digest="a" * 64)


@pytest.mark.parametrize("text", ["", "@", "a@", "@b", "a@b@c", "a b", "../x", "sha256:xyz"])
def test_other_refs_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be an id"):
        parse_reference(text)


@given(st.text(max_size=40))
def test_any_text_is_a_ref_or_a_value_error(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ValueError:
        return
    assert reference.id or reference.name or reference.content_digest


def test_is_id_knows_its_own() -> None:
    assert is_id(new_id("task"))
    assert not is_id("task_123")


def test_ids_made_one_after_another_within_a_millisecond_keep_their_order() -> None:
    made: list[str] = []
    for _ in range(200):
        made.append(new_id("job"))
        time.sleep(1e-6)  # the fraction of the millisecond has a quarter of a microsecond
    assert made == sorted(made)
