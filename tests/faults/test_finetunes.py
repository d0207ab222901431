"""A fine-tuning whose process is killed: the next attempt goes on from the last state and ends with the same bytes."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.domain.work import FinetuneWork
from tests.workers import tiny_bert
from workers.runner import WorkOrder
from workers.training.states import STATE_FILE
from workers.warm import JobProcess, WarmServer

MODULES = ("workers.pipelines.finetune", "workers.evaluators.text_classification", "workers.finetuning.full")
N_STEPS = 60


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    made = WarmServer("tests.faults.real_work", MODULES, threads=1)
    yield made
    made.stop()


def start(server: WarmServer, folder: Path, attempt: str) -> JobProcess:
    base = folder / "base"
    base_model = tiny_bert.local(base if base.exists() else tiny_bert.make_encoder(base))
    (folder / attempt / "output").mkdir(parents=True)
    work = FinetuneWork(
        base_model=base_model,
        head_base_model=base_model,
        task=tiny_bert.make_task(folder / "task", preprocessing={"max_tokens": 16}),
        technique="full",
        parameters={"steps": N_STEPS, "learning_rate": 0.02, "batch_size": 4, "validate_every": 25, "keep": "best"},
        seed=0,
        output=folder / attempt / "output",
        kept=None if attempt == "whole" else folder / "kept",
        save_every_seconds=0.0,
    )
    order = folder / attempt / "order.json"
    order.write_text(WorkOrder(work=work).model_dump_json())
    return server.launch(order)


def read(job: JobProcess, *, until_step: int = N_STEPS + 1) -> list[dict[str, object]]:
    """Read reports until one of this step, or the last word."""
    found: list[dict[str, object]] = []
    while (lines := job.read(0.05)) is not None:
        found += [json.loads(line) for line in lines]
        if any(one["kind"] == "progress" and one["progress"]["done"] >= until_step for one in found):  # type: ignore[index]
            break
    return found


def read_output(folder: Path, attempt: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / attempt / "output").iterdir()}


def test_a_killed_process_is_made_up_for_by_the_next(server: WarmServer, tmp_path: Path) -> None:
    whole = start(server, tmp_path, "whole")
    assert read(whole)[-1]["kind"] == "succeeded"
    whole.end()

    killed = start(server, tmp_path, "killed")
    read(killed, until_step=2)
    os.kill(killed.pid.result(30), signal.SIGKILL)
    assert read(killed)[-1:] != [{"kind": "succeeded"}]
    assert killed.end().exit_code == -signal.SIGKILL
    assert (tmp_path / "kept" / STATE_FILE).stat().st_size > 0

    resumed = start(server, tmp_path, "resumed")
    reports = read(resumed)
    resumed.end()

    first = next(one["progress"] for one in reports if one["kind"] == "progress")
    assert first["stage"] == "training"  # type: ignore[index]
    assert first["done"] > 1  # type: ignore[index]
    assert reports[-1]["kind"] == "succeeded"
    assert read_output(tmp_path, "resumed") == read_output(tmp_path, "whole")
