"""How an end without a last word is told, and how problems travel from a job process."""

import signal
from pathlib import Path

import pytest

from app.domain.errors import FieldProblem, InvalidHeader, NotFinite, OutOfMemory, WorkerLost, from_json
from workers import memory
from workers.attempt import lost
from workers.memory import out_of_memory_kills
from workers.warm import Exit

KILLED = Exit(-signal.SIGKILL, max_rss_bytes=3 * 2**20)


def test_a_kill_by_the_kernel_for_lack_of_memory_is_out_of_memory() -> None:
    problem = lost(KILLED, has_oom_kill=True)
    assert isinstance(problem, OutOfMemory)
    assert not problem.retryable
    assert "3 MiB" in problem.detail


def test_a_kill_from_outside_is_worker_lost() -> None:
    problem = lost(KILLED, has_oom_kill=False)
    assert isinstance(problem, WorkerLost)
    assert problem.retryable
    assert "signal 9 (SIGKILL)" in problem.detail


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Exit(-signal.SIGSEGV), "signal 11 (SIGSEGV)"),
        (Exit(7), "exit code 7"),
        (Exit(-9, is_server_lost=True), "went with the warm process"),
    ],
)
def test_another_end_is_worker_lost_even_when_memory_ran_out_elsewhere(ended: Exit, said: str) -> None:
    problem = lost(ended, has_oom_kill=ended.exit_code != -9)
    assert isinstance(problem, WorkerLost)
    assert said in problem.detail


def test_the_count_of_kills_is_read_from_our_own_group_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "cgroup" / "jobs"
    group.mkdir(parents=True)
    (tmp_path / "self").write_text("4:memory:/other\n0::/jobs\n")
    (tmp_path / "vmstat").write_text("pgfault 1\noom_kill 9\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "self")
    monkeypatch.setattr(memory, "MACHINE", tmp_path / "vmstat")

    assert out_of_memory_kills() == 9  # nothing of our own can be read
    (group / "memory.events").write_text("oom 5\noom_kill 4\noom_group_kill 0\n")
    assert out_of_memory_kills() == 4


def test_the_count_of_kills_is_zero_where_it_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CGROUPS", "MEMBERSHIP", "MACHINE"):
        monkeypatch.setattr(memory, name, tmp_path / "nothing")
    assert out_of_memory_kills() == 0


def test_a_problem_comes_out_as_it_went_in() -> None:
    problem = InvalidHeader("no", errors=[FieldProblem("/a", "bad", "b"), FieldProblem("/c", "worse")])
    again = from_json(problem.to_json())
    assert type(again) is InvalidHeader
    assert (again.detail, again.errors) == (problem.detail, problem.errors)
    assert type(from_json(NotFinite("nan").to_json())) is NotFinite


def test_a_problem_of_an_unknown_code_is_an_internal_one() -> None:
    assert from_json({"code": "of the future", "detail": "?"}).code == "internal"
