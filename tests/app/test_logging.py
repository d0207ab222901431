"""Logs: one line per event, facts as keys, the libraries' records in the same form."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from app.logging import set_up_logging


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def read(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_event_is_one_json_object_with_its_facts(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    with structlog.contextvars.bound_contextvars(request="req-1"):
        structlog.get_logger("x").info("job_started", job="job_1", attempt=2)
    (line,) = read(capsys)
    assert {key: line[key] for key in ("event", "job", "attempt", "request", "level")} == {
        "event": "job_started", "job": "job_1", "attempt": 2, "request": "req-1", "level": "info",
    }  # fmt: skip
    assert str(line["at"]).endswith("Z")


def test_records_of_libraries_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    logging.getLogger("some.library").warning("low on %s", "tea", extra={"cups": 1})
    (line,) = read(capsys)
    assert (line["event"], line["level"], line["cups"]) == ("low on tea", "warning", 1)


def test_a_traceback_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json")
    try:
        int("inside")
    except ValueError:
        structlog.get_logger("x").exception("job_broke")
    (line,) = read(capsys)
    assert "ValueError: invalid literal" in str(line["exception"])


def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("json", "warning")
    structlog.get_logger("x").info("quiet")
    logging.getLogger("celery.worker").info("quiet")
    assert read(capsys) == []


def test_the_console_form_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("console")
    structlog.get_logger("x").info("job_started", job="job_1")
    line = capsys.readouterr().err
    assert "job_started" in line
    assert "job_1" in line
