"""How problems and numbers are printed."""

import json

import pytest

from app.cli.client import Document
from app.cli.output import bytes_text, print_problem, print_table, seconds_text, tags_text

PROBLEM: Document = {
    "status": 422,
    "code": "invalid_parameters",
    "title": "The method's parameters are not valid",
    "detail": "ties takes no parameter 'densty'.",
    "request_id": "req-1",
    "errors": [
        {"pointer": "/parameters/densty", "message": "unknown parameter", "did_you_mean": "density"},
        {"pointer": "", "message": "something else"},
    ],
}


def test_a_problem_is_told_with_its_fields_and_near_matches(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem(PROBLEM)

    assert capsys.readouterr().err.splitlines() == [
        "Error: ties takes no parameter 'densty'. (invalid_parameters)",
        "  /parameters/densty: unknown parameter Did you mean 'density'?",
        "  /: something else",
        "  request req-1",
    ]


def test_a_problem_as_json_is_the_document_itself(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem(PROBLEM, as_json=True)

    assert json.loads(capsys.readouterr().err) == PROBLEM


def test_a_problem_without_detail_is_told_by_its_title(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem({"title": "Not found"})

    assert capsys.readouterr().err == "Error: Not found\n"


def test_square_brackets_in_a_message_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_problem({"detail": "must match [A-Za-z0-9][red]"})

    assert capsys.readouterr().err == "Error: must match [A-Za-z0-9][red]\n"


def test_a_table_without_rows_says_so_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("id",), [], empty="No jobs.")

    assert capsys.readouterr() == ("", "No jobs.\n")


@pytest.mark.parametrize(
    ("size", "text"), [(None, None), (0, "0 B"), (999, "999 B"), (90_868_376, "90.9 MB"), (2.5e12, "2.50 TB")]
)
def test_sizes_are_told_in_decimal_units(size: float | None, text: str | None) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(None, None), (0.04, "0.0 s"), (59.94, "59.9 s"), (185.7, "3 min 5 s")])
def test_spans_are_told_in_seconds_and_minutes(seconds: float | None, text: str | None) -> None:
    assert seconds_text(seconds) == text


def test_tags_are_told_in_order_of_their_keys() -> None:
    assert tags_text({"b": "2", "a": "1"}) == "a=1, b=2"
    assert tags_text({}) is None
