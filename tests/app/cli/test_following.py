"""How jobs are followed: bars on a terminal, lines elsewhere, and the words for each state."""

import io
from typing import Any

import pytest
from rich.console import Console

from app.cli.client import Client, Document
from app.cli.following import describe_progress, follow, report_end, run_seconds

STARTED, FINISHED = "2026-01-01T00:00:00.000000Z", "2026-01-01T00:01:30.500000Z"


def job(state: str, **changes: Any) -> Document:
    document: Document = {
        "id": "job_1",
        "state": state,
        "progress": None,
        "attempts": 0,
        "max_attempts": 3,
        "timings": {"started_at": None, "finished_at": None},
        "deduplicated_from": None,
        "problem": None,
    }
    return {**document, **changes}


def running(**progress: Any) -> Document:
    return job("running", attempts=1, progress={"stage": "training", "fraction": 0.5, **progress})


DONE = job("succeeded", timings={"started_at": STARTED, "finished_at": FINISHED})


class Played(Client):
    """A client whose jobs stand where a script says, one entry per look."""

    def __init__(self, **jobs: list[Document]) -> None:
        super().__init__("http://127.0.0.1:1")
        self._jobs = jobs

    def get(self, path: str, parameters: Any = None) -> Document:
        states = self._jobs[path.removeprefix("/v1/jobs/")]
        return states.pop(0) if len(states) > 1 else states[0]


def followed(*, is_terminal: bool) -> str:
    text = io.StringIO()
    console = Console(file=text, width=100, force_terminal=is_terminal, color_system=None)
    client = Played(a=[job("queued"), running(), running(), DONE], b=[DONE])
    ended = follow(client, {"merge": "a", "measure": "b"}, console=console)
    assert [entry["state"] for entry in ended.values()] == ["succeeded", "succeeded"]
    assert list(ended) == ["merge", "measure"]
    return text.getvalue()


def test_without_a_terminal_each_change_of_state_is_one_line() -> None:
    assert followed(is_terminal=False).splitlines() == [
        "  merge: queued",
        "  measure: done in 1 min 30 s",
        "  merge: 50%, training",
        "  merge: done in 1 min 30 s",
    ]


def test_on_a_terminal_there_is_a_bar_per_job() -> None:
    text = followed(is_terminal=True)

    assert "100 % done in 1 min 30 s" in text
    assert "━" in text


def test_following_nothing_ends_at_once() -> None:
    assert follow(Played(), {}, console=Console(file=io.StringIO())) == {}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (job("queued"), "queued"),
        (job("queued", attempts=1), "queued again after attempt 1 of 3"),
        (running(), "training"),
        (running(done=3, total=75, unit="steps", eta_seconds=12.3), "training, 3/75 steps, 12.3 s left"),
        (running(done=3, total=75, unit="bytes", bytes_per_second=2.5e8), "training, 250.0 MB/s"),
        (job("running", attempts=1), "running"),
        (job("canceling"), "canceling"),
        (job("failed"), "failed"),
        (DONE, "done in 1 min 30 s"),
        (job("succeeded", deduplicated_from="job_0"), "done before"),
    ],
)
def test_each_state_has_its_words(document: Document, words: str) -> None:
    assert describe_progress(document) == words


def test_run_time_is_that_of_the_last_attempt() -> None:
    assert run_seconds(DONE) == 90.5
    assert run_seconds(job("canceled")) is None


def test_an_end_without_success_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_end(DONE)
    assert not report_end(job("canceled"))
    assert not report_end(job("failed", problem={"code": "timeout", "detail": "It ran longer than 5 s."}))

    assert capsys.readouterr().err.splitlines() == [
        "Job job_1 was canceled.",
        "Error: It ran longer than 5 s. (timeout)",
    ]
