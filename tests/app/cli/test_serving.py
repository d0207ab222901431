"""`amalgam serve`: what it refuses, that it is ready, that it restarts what dies, and that it leaves nothing behind."""

import json
import signal
import socket
import time
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.embedded import Serve, environment, run_amalgam, run_inside, serving, start_serving
from tests.waiting import wait_until


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def has_successor(serve: Serve, name: str, before: psutil.Process) -> bool:
    now = serve.child(name)
    return now is not None and now.pid != before.pid


@pytest.mark.parametrize("command", ["serve", "api"])
def test_a_host_that_others_reach_is_refused_with_what_to_do(command: str, tmp_path: Path) -> None:
    ended = run_amalgam(command, "--host", "0.0.0.0", env=environment(tmp_path / "home"))

    assert ended.returncode == 2
    assert "--host 0.0.0.0 can be reached from other machines" in ended.stderr
    assert "AMALGAM_AUTH=off" in ended.stderr
    assert not (tmp_path / "home").exists()


def test_a_bad_setting_stops_the_start_with_the_variables_name(tmp_path: Path) -> None:
    ended = run_amalgam("serve", env=environment(tmp_path / "home", {"AMALGAM_CONCURRENCY": "many"}))

    assert ended.returncode == 2
    assert "AMALGAM_CONCURRENCY: found 'many'" in ended.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_amalgam("serve", "--port", str(port), env=environment(tmp_path / "home"))

    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in ended.stderr


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    ended = run_amalgam("migrate", env=environment(tmp_path / "file" / "home"))

    assert ended.returncode == 1
    assert f"AMALGAM_HOME={tmp_path / 'file' / 'home'}: this folder cannot be used" in ended.stderr


def test_a_database_that_is_away_is_named_without_its_password(tmp_path: Path) -> None:
    away = {"AMALGAM_DATABASE_URL": "postgresql://me:hidden@127.0.0.1:1/amalgam"}

    ended = run_amalgam("migrate", env=environment(tmp_path, away))

    assert ended.returncode == 1
    assert "the database postgresql://me:***@127.0.0.1:1/amalgam cannot be brought" in ended.stderr
    assert "hidden" not in ended.stderr


def test_migrating_twice_does_no_harm(tmp_path: Path) -> None:
    variables = environment(tmp_path / "home")

    assert [run_amalgam("migrate", env=variables).returncode for _ in range(2)] == [0, 0]


def test_config_prints_what_is_in_force_with_secrets_masked(tmp_path: Path) -> None:
    variables = environment(tmp_path, {"AMALGAM_BROKER_URL": "redis://:hidden@127.0.0.1:6379/0"})

    lines = run_amalgam("config", env=variables).stdout.splitlines()
    document = json.loads(run_amalgam("config", "--json", env=variables).stdout)

    assert "AMALGAM_BROKER_URL=redis://:***@127.0.0.1:6379/0" in lines
    assert f"AMALGAM_HOME={tmp_path}" in lines
    assert document["AMALGAM_CONCURRENCY"] == "2"


def test_help_comes_at_once() -> None:
    run_amalgam("--help")  # compiles the modules, should this be the first run
    started = time.monotonic()

    ended = run_amalgam("--help")

    assert ended.returncode == 0
    assert time.monotonic() - started < 1.5  # 0.3 s on an idle machine


def test_ready_means_ready_with_the_docs_and_both_parts(service: Serve) -> None:
    assert httpx.get(f"{service.url}/readyz").status_code == 200
    assert httpx.get(f"{service.url}/docs").status_code == 200
    assert service.child("api") is not None
    assert service.child("worker") is not None


@pytest.mark.slow
def test_a_killed_part_is_started_again_while_callers_wait(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as serve:
        for name in ("api", "worker"):
            before = serve.child(name)
            assert before is not None
            before.kill()

            wait_until(partial(has_successor, serve, name, before), deadline_seconds=20)
        assert httpx.get(f"{serve.url}/readyz", timeout=20).status_code == 200  # the socket stayed open


@pytest.mark.slow
def test_a_part_that_does_not_stay_up_ends_the_whole_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "broker").write_text("a file where the worker wants a folder")

    with start_serving(tmp_path / "home") as serve:
        status = serve.process.wait(timeout=90)

    assert status == 1
    assert "process died 5 times in a row" in serve.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_leaves_no_process(number: int, tmp_path: Path) -> None:
    with serving(tmp_path / "home") as serve:
        family = serve.family()

        assert serve.end(number) == 0
        assert [process for process in family if not is_gone(process)] == []


def test_folders_named_like_our_packages_are_not_taken_for_them(tmp_path: Path) -> None:
    for name in ("app", "workers", "migrations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger')")

    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "model.safetensors").touch()

    with serving(tmp_path / "home", cwd=tmp_path) as serve:
        ended = run_inside("checkpoints", "register", str(tmp_path / "empty"), "-n", "x", "--wait", url=serve.url)

    assert "(invalid_header)" in ended.stderr  # a job process ran
    assert "a stranger" not in serve.output


def test_killing_it_takes_its_children_along(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as serve:
        family = serve.family()

        serve.end(signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, family)), deadline_seconds=20, reason="the children's end")
