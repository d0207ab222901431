"""The warm process: forks job processes, tells how they ended, takes them with it, comes back."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import is_alive
from tests.waiting import wait_until
from workers.warm import JobProcess, WarmServer


@pytest.fixture
def server() -> Iterator[WarmServer]:
    made = WarmServer("tests.faults.work")
    yield made
    made.stop()


def order(folder: Path, name: str = "a", **behavior: object) -> Path:
    source = folder / name
    source.mkdir()
    (source / "behavior.json").write_text(json.dumps(behavior))
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"work": {"kind": "import", "source": str(source)}}))
    return path


def read_all(job: JobProcess) -> list[dict[str, object]]:
    reports = []
    while (lines := job.read(0.1)) is not None:
        reports += [json.loads(line) for line in lines]
    return reports


def test_a_job_process_says_its_last_word_and_ends_well(server: WarmServer, tmp_path: Path) -> None:
    job = server.launch(order(tmp_path))
    assert read_all(job)[-1]["kind"] == "succeeded"
    ended = job.end()
    assert (ended.exit_code, ended.is_server_lost) == (0, False)
    assert ended.max_rss_bytes > 2**20


def test_how_a_job_process_died_is_told(server: WarmServer, tmp_path: Path) -> None:
    job = server.launch(order(tmp_path, signal=int(signal.SIGABRT)))
    read_all(job)
    assert job.end().exit_code == -signal.SIGABRT


def test_a_job_process_is_alone_in_its_session_and_killed_when_ended_early(server: WarmServer, tmp_path: Path) -> None:
    job = server.launch(order(tmp_path, sleep_seconds=60))
    pid = job.pid.result(30)
    wait_until(lambda: os.getsid(pid) == pid)
    assert job.end().exit_code == -signal.SIGKILL
    assert not is_alive(pid)


def test_a_job_stopped_while_the_libraries_are_still_imported_is_gone_at_once_and_never_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(5)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = WarmServer("tests.faults.work", ("slow_to_import",))
    try:
        stopped, wanted = server.launch(order(tmp_path, "a")), server.launch(order(tmp_path, "b"))
        began_at = time.monotonic()
        assert stopped.end().exit_code == -signal.SIGKILL
        assert time.monotonic() - began_at < 1.0
        assert read_all(wanted)[-1]["kind"] == "succeeded"
        assert wanted.end().exit_code == 0
        assert not (tmp_path / "a" / "pid").exists()
    finally:
        server.stop()


def test_several_run_at_once(server: WarmServer, tmp_path: Path) -> None:
    jobs = [server.launch(order(tmp_path, str(number), exit_code=number)) for number in range(1, 6)]
    for job in jobs:
        read_all(job)
    assert [job.end().exit_code for job in jobs] == [1, 2, 3, 4, 5]


def test_job_processes_go_with_a_warm_process_that_dies_and_the_next_starts_another(
    server: WarmServer, tmp_path: Path
) -> None:
    job = server.launch(order(tmp_path, sleep_seconds=60))
    pid = job.pid.result(30)
    os.kill(_parent(pid), signal.SIGKILL)
    assert read_all(job)[-1:] != [{"kind": "succeeded"}]
    assert job.end().is_server_lost
    wait_until(lambda: not is_alive(pid))
    assert not server.is_broken

    again = server.launch(order(tmp_path, "b"))
    assert read_all(again)[-1]["kind"] == "succeeded"
    again.end()


def test_stopping_takes_every_job_process_along(server: WarmServer, tmp_path: Path) -> None:
    job = server.launch(order(tmp_path, sleep_seconds=60))
    pid = job.pid.result(30)
    server.stop()
    wait_until(lambda: not is_alive(pid))
    job.end()


def test_a_warm_process_that_cannot_import_is_broken(tmp_path: Path) -> None:
    server = WarmServer("tests.faults.work", ("no_such_module_anywhere",))
    job = server.launch(order(tmp_path))
    assert server.wait_until_warm(30)  # it has ended
    assert read_all(job) == []
    assert job.end().is_server_lost
    wait_until(lambda: server.is_broken)


def test_a_started_process_is_warm_once_it_has_imported_its_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "waits_for_a_file.py").write_text(
        f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists():\n    time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    server = WarmServer("tests.faults.work", ("waits_for_a_file",))
    try:
        server.start()
        assert not server.wait_until_warm(0.2)
        (tmp_path / "go").touch()
        assert server.wait_until_warm(60)
    finally:
        server.stop()


def test_a_memory_limit_holds_for_the_job_process_alone(server: WarmServer, tmp_path: Path) -> None:
    limited = server.launch(order(tmp_path, "a", allocate_bytes=2**31), memory_limit_bytes=2**29)
    last = read_all(limited)[-1]
    assert last["problem"]["code"] == "out_of_memory"  # type: ignore[index]
    limited.end()
    free = server.launch(order(tmp_path, "b", allocate_bytes=2**20))
    assert read_all(free)[-1]["kind"] == "succeeded"
    free.end()


def _parent(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[1])


def test_the_warm_process_outlives_the_thread_that_started_it(server: WarmServer, tmp_path: Path) -> None:
    launched: list[JobProcess] = []

    def launch() -> None:
        launched.append(server.launch(order(tmp_path, sleep_seconds=1.0)))
        launched[0].pid.result(30)

    thread = threading.Thread(target=launch)
    thread.start()
    thread.join()
    assert read_all(launched[0])[-1]["kind"] == "succeeded"
    assert not launched[0].end().is_server_lost


def test_the_warm_process_goes_with_its_supervisor_however_that_dies(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from workers.warm import WarmServer\n"
        "job = WarmServer('tests.faults.work').launch(Path(sys.argv[1]))\n"
        "print(job.pid.result(30), flush=True); sys.stdin.read()"
    )
    supervisor = subprocess.Popen(
        [sys.executable, "-c", program, str(order(tmp_path, sleep_seconds=60))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        warm = _parent(pid)
        supervisor.kill()
    wait_until(lambda: not is_alive(pid) and not is_alive(warm), reason="nobody is left")
