"""A job process whose work does what its folder says: sleep, take memory, crash, fill the disk. For tests alone."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from app.domain.checkpoints import Manifest
from app.domain.jobs import Progress
from app.domain.work import ImportOutcome, ImportWork, Outcome
from workers import runner

BEHAVIOR = "behavior.json"
PID = "pid"
PRELOADED = "TEST_PRELOADED"  # variable that names what the warm process imports


def warm_up() -> str | None:
    return None


def run(order: Path, reports: int) -> None:
    runner.PERFORMERS = {**runner.PERFORMERS, ImportWork: _behave}
    runner.run(order, reports)


def _behave(work: ImportWork, _order: runner.WorkOrder, on_progress: Callable[[Progress], None]) -> Outcome:
    behavior = json.loads((work.source / BEHAVIOR).read_text())
    (work.source / PID).write_text(str(os.getpid()))
    on_progress(Progress(stage="behaving", fraction=0.1, done=1, total=10, unit="steps"))
    time.sleep(behavior.get("sleep_seconds", 0))
    taken = bytearray(behavior.get("allocate_bytes", 0))
    if behavior.get("signal"):
        os.kill(os.getpid(), behavior["signal"])
    if behavior.get("exit_code") is not None:
        os._exit(behavior["exit_code"])
    if behavior.get("fill_disk"):
        with Path("/dev/full").open("wb") as file:
            file.write(b"0" * 4096)
    if behavior.get("fault"):
        raise ZeroDivisionError(behavior["fault"])
    on_progress(Progress(stage="done", fraction=1.0, done=10, total=10, unit="steps"))
    return ImportOutcome(manifest=Manifest(files=(), tensors=(), weights_digest=f"{len(taken)}"))
