"""A multitask artifact through real processes: merged, extended, measured, downloaded, materialized, deleted."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from tests.journeys.test_main_job import TASKS, Caller, Document, caller, fine_tune, task_body, upload
from tests.workers import tiny_bert

__all__ = ["caller"]  # the fixture


@pytest.mark.slow
def test_one_artifact_for_all_tasks(caller: Caller, tmp_path: Path) -> None:
    upload(caller, "base", tiny_bert.make_encoder(tmp_path / "base"))
    for name in TASKS:
        caller.made("/v1/tasks", task_body(tmp_path / name, name))
    experts = [fine_tune(caller, name, seed) for seed, name in enumerate(TASKS)]
    merge = caller.finish(
        "/v1/merges",
        {
            "method": "peru_fft",
            "base_model": "base",
            "models": [{"checkpoint": "kind-expert"}],
            "parameters": {"density": 1.0},
            "output": {"name": "helpdesk"},
        },
    )

    added = caller.finish(
        f"/v1/artifacts/{merge['result']['artifacts'][0]}/tasks",
        {"models": [{"checkpoint": "other-expert"}], "evaluate": list(TASKS)},
    )

    assert [patch["task"] for patch in added["result"]["data"]["storage"]["patches"]] == list(TASKS)
    assert caller.read("/v1/checkpoints/helpdesk@2")["kind"] == "multitask"
    check_evaluations(caller, added)
    check_patch(caller, added, experts[1])
    check_materialization(caller, added)
    check_deletion(caller, added)


def check_evaluations(caller: Caller, added: Document) -> None:
    """Each task is measured as its own expert is."""
    for name, job_id in zip(TASKS, added["result"]["evaluations"], strict=True):
        metrics = caller.wait(job_id)["result"]["metrics"]
        expert = caller.finish("/v1/evaluations", {"checkpoint": f"{name}-expert", "tasks": [name]})
        assert [metric["value"] for metric in metrics] == [metric["value"] for metric in expert["result"]["metrics"]]


def check_patch(caller: Caller, added: Document, expert: Document) -> None:
    """A patch is downloaded alone; at density 1 it holds the expert's own values."""
    artifact = added["result"]["artifacts"][0]
    content = caller.client.get(f"/v1/artifacts/{artifact}/files/patches/other.safetensors").content
    model = caller.download(expert["result"]["artifacts"][0])
    for name, tensor in load(content).items():
        assert torch.equal(tensor, model[name.removesuffix("::values")])


def check_materialization(caller: Caller, added: Document) -> None:
    path = f"/v1/artifacts/{added['result']['artifacts'][0]}/materializations"
    job = caller.finish(path, {"task": "other", "output": {"name": "other-again"}})
    made = caller.read(f"/v1/checkpoints/{job['result']['checkpoint']}")
    assert made["weights_digest"] == caller.read("/v1/checkpoints/other-expert")["weights_digest"]
    edges = caller.read(f"/v1/checkpoints/{made['id']}/lineage")["edges"]
    assert added["result"]["checkpoint"] in [edge["source"] for edge in edges]


def check_deletion(caller: Caller, added: Document) -> None:
    artifact = added["result"]["artifacts"][0]
    assert caller.client.delete(f"/v1/artifacts/{artifact}").status_code == 204
    assert caller.client.get(f"/v1/artifacts/{artifact}/files/patches/other.safetensors").status_code == 404
    assert caller.read("/v1/checkpoints/helpdesk@1")["kind"] == "multitask"
    caller.finish("/v1/evaluations", {"checkpoint": "other-again", "tasks": ["other"]})
