"""The job process: what it reports, and what becomes of errors."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from app.domain.errors import AmalgamError, InvalidHeader
from app.domain.jobs import Progress
from app.domain.work import ImportWork, WorkFailed
from workers import runner
from workers.runner import REPORTS, Reporter, WorkOrder, to_problem


def read_reports(descriptor: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in os.read(descriptor, 1 << 16).splitlines()]


def run_import(tmp_path: Path, source: Path) -> list[dict[str, object]]:
    order = tmp_path / "order.json"
    order.write_text(WorkOrder(work=ImportWork(source=source)).model_dump_json())
    read, write = os.pipe()
    runner.run(order, write)
    os.close(write)
    reports = read_reports(read)
    os.close(read)
    return reports


def test_a_work_order_ends_with_its_outcome_and_its_stages(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "model.safetensors")
    reports = run_import(tmp_path, tmp_path / "model.safetensors")
    last = reports[-1]
    assert last["kind"] == "succeeded"
    assert [stage for stage, _ in last["stages"]] == ["hashing"]  # type: ignore[attr-defined]
    assert {report["kind"] for report in reports[:-1]} == {"progress"}


def test_a_work_order_that_cannot_be_done_ends_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x01" * 20)
    last = run_import(tmp_path, tmp_path / "model.safetensors")[-1]
    assert last["kind"] == "failed"
    assert last["problem"]["code"] == "invalid_header"  # type: ignore[index]


def test_the_catalog_is_that_of_the_methods() -> None:
    assert runner.warm_up() is None


def test_new_stages_are_always_reported_and_repeats_are_not() -> None:
    read, write = os.pipe()
    reporter = Reporter(write)
    for stage, fraction in (("reading", 0.0), ("reading", 0.1), ("reading", 0.2), ("merging", 0.3)):
        reporter.progress(Progress(stage=stage, fraction=fraction))
    reporter.say(WorkFailed(problem={}))
    os.close(write)
    reports = [REPORTS.validate_python(report) for report in read_reports(read)]
    os.close(read)
    assert [report.kind for report in reports] == ["progress", "progress", "failed"]
    assert [stage for stage, _ in reporter.stages()] == ["reading", "merging"]


def test_reports_larger_than_a_pipe_s_buffer_arrive_whole() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        Reporter(write).say(WorkFailed(problem={"detail": "x" * 300_000}))
        os._exit(0)
    os.close(write)
    data = b""
    while part := os.read(read, 1 << 16):
        data += part
    os.close(read)
    os.waitpid(child, 0)
    assert len(json.loads(data)["problem"]["detail"]) == 300_000


@pytest.mark.parametrize(
    ("error", "code", "is_retryable"),
    [
        (InvalidHeader("bad"), "invalid_header", False),
        (MemoryError(), "out_of_memory", False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "out_of_memory", False),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory", False),
        (OSError(errno.ENOSPC, "No space left on device"), "insufficient_storage", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "insufficient_storage", False),
        (KeyError("x"), "job_internal", True),
        (RuntimeError("a shape"), "job_internal", True),
    ],
)  # fmt: skip
def test_every_error_becomes_a_problem(error: Exception, code: str, is_retryable: bool) -> None:  # noqa: FBT001
    problem = to_problem(error)
    assert isinstance(problem, AmalgamError)
    assert (problem.code, problem.retryable) == (code, is_retryable)


def test_torch_s_own_failure_to_allocate_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 60)
    assert to_problem(refused.value).code == "out_of_memory"


def test_the_message_of_an_error_we_did_not_foresee_stays_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    problem = to_problem(ValueError("/srv/secret/path"))
    assert "secret" not in problem.detail
    assert "/srv/secret/path" in capfd.readouterr().err


def test_a_file_is_told_of_at_steps_and_whole_once_the_next_one_follows() -> None:
    read, write = os.pipe()
    reporter = Reporter(write)
    for path, n_bytes in (("a", 5), ("a", 9 << 20), ("a", (9 << 20) + 7), ("b", 3), ("c", 8 << 20), ("c", 9 << 20)):
        reporter.written(path, n_bytes)
    os.close(write)
    told = [REPORTS.validate_python(report) for report in read_reports(read)]
    os.close(read)
    assert [(one.path, one.n_bytes) for one in told if one.kind == "written"] == [
        ("a", 9 << 20),
        ("a", (9 << 20) + 7),
        ("b", 3),
        ("c", 8 << 20),
    ]
