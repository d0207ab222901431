"""The main job end to end through real processes: checkpoints in, merged and measured model out, over REST alone.

Once on the embedded default (SQLite, files), once on PostgreSQL, Valkey and S3. A tiny BERT is fine-tuned on two tasks
in the service, the experts are merged and measured, the merged weights compared with brute force, the comparison read,
and what is still needed cannot be deleted.
"""

import base64
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load

from tests.embedded import Serve, serving
from tests.servers import S3Bucket
from tests.workers import tiny_bert

Document = dict[str, Any]
TASKS = ("kind", "other")


class Caller:
    """A program that knows the address of the service and nothing else."""

    def __init__(self, serve: Serve) -> None:
        self.serve = serve
        self.client = httpx.Client(base_url=serve.url, timeout=90)

    def read(self, path: str, **query: object) -> Document:
        """GET what must be there."""
        response = self.client.get(path, params=query)  # type: ignore[arg-type]  # numbers and texts
        assert response.status_code == 200, response.text
        document: Document = response.json()
        return document

    def made(self, path: str, body: object) -> Document:
        """POST what must be accepted."""
        response = self.client.post(path, json=body)
        assert response.status_code in (200, 201, 202), response.text
        document: Document = response.json()
        return document

    def wait(self, job_id: str) -> Document:
        """Wait for the end of a job by long polls; it must succeed."""
        for _ in range(4):
            job = self.read(f"/v1/jobs/{job_id}", wait_seconds=30)
            if job["state"] in ("succeeded", "failed", "canceled"):
                break
        assert job["state"] == "succeeded", f"{job['problem']}\n{self.serve.output}"
        return job

    def finish(self, path: str, body: object) -> Document:
        """POST a job and wait for its end."""
        return self.wait(self.made(path, body)["id"])

    def download(self, artifact: str) -> dict[str, torch.Tensor]:
        """Return the weights of an artifact, checked against the digest it names."""
        files = {file["path"]: file for file in self.read(f"/v1/artifacts/{artifact}")["files"]}
        content = self.client.get(f"/v1/artifacts/{artifact}/files/model.safetensors").content
        assert hashlib.sha256(content).hexdigest() == files["model.safetensors"]["sha256"]
        return load(content)


@pytest.fixture(params=["embedded", "servers"])
def caller(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Caller]:
    """A caller of a fresh service."""
    settings: dict[str, str] = {}
    if request.param == "servers":
        bucket: S3Bucket = request.getfixturevalue("s3_bucket")
        settings = {
            "AMALGAM_DATABASE_URL": request.getfixturevalue("postgresql_url"),
            "AMALGAM_BROKER_URL": request.getfixturevalue("redis_url"),
            "AMALGAM_STORE_URL": f"{bucket.url}/store",
            **bucket.environment,
        }
    with serving(tmp_path / "home", settings) as serve:
        caller = Caller(serve)
        yield caller
        caller.client.close()


@pytest.mark.slow
def test_checkpoints_in_merged_and_measured_model_out(caller: Caller, tmp_path: Path) -> None:
    base = upload(caller, "base", tiny_bert.make_encoder(tmp_path / "base"))
    for name in TASKS:
        caller.made("/v1/tasks", task_body(tmp_path / name, name))
    experts = [fine_tune(caller, name, seed) for seed, name in enumerate(TASKS)]

    merge = caller.finish(
        "/v1/merges",
        {
            "method": "task_arithmetic",
            "base_model": "base",
            "models": [{"checkpoint": f"{name}-expert"} for name in TASKS],
            "parameters": {"scaling_coefficient": 0.5},
            "output": {"name": "merged", "tags": {"made": "here"}},
            "evaluate": list(TASKS),
        },
    )
    for job_id in merge["result"]["evaluations"]:
        caller.wait(job_id)
    for name in ("base", *(f"{task}-expert" for task in TASKS)):
        caller.finish("/v1/evaluations", {"checkpoint": name, "tasks": list(TASKS)})

    check_weights(caller, merge, base, experts)
    check_comparison(caller)
    check_log(caller, merge)
    check_archive(caller, merge)
    check_lineage(caller, merge, base, experts)
    check_deduplication(caller, merge)
    check_deletion(caller, merge)


# --- making -----------------------------------------------------------------------------------------------------------


def upload(caller: Caller, name: str, folder: Path) -> Document:
    """Send a folder file by file, and wait until it is a checkpoint."""
    upload_id = caller.made("/v1/checkpoints/uploads", {"name": name})["id"]
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        response = caller.client.put(
            f"/v1/checkpoints/uploads/{upload_id}/files/{path.name}",
            content=content,
            headers={"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"},
        )
        assert response.status_code in (200, 201), response.text
    begun = caller.made(f"/v1/checkpoints/uploads/{upload_id}/complete", None)
    caller.wait(begun["job"]["id"])
    return caller.read(f"/v1/checkpoints/{name}")


def task_body(folder: Path, name: str) -> Document:
    rows = tiny_bert.make_rows()
    dataset = {
        split: tiny_bert.write_rows(folder / f"{split}.jsonl", part).as_uri()
        for split, part in (("train", rows), ("validation", rows[::2]), ("test", rows[1::2]))
    }
    return {
        "name": name,
        "kind": "text-classification",
        "dataset": dataset,
        "classes": list(tiny_bert.CLASSES),
        "head": {"kind": "label_prompts", "prompts": list(tiny_bert.PROMPTS)},
        "preprocessing": {"max_tokens": 8},
    }


def fine_tune(caller: Caller, task: str, seed: int) -> Document:
    job = caller.finish(
        "/v1/finetunes",
        {
            "base_model": "base",
            "task": task,
            "parameters": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3},
            "seed": seed,
            "output": {"name": f"{task}-expert"},
        },
    )
    assert job["result"]["metrics"][0]["split"] == "validation"
    return job


# --- checking ---------------------------------------------------------------------------------------------------------


def check_weights(caller: Caller, merge: Document, base: Document, experts: list[Document]) -> None:
    """The merged weights are base + 0.5 · Σ (expert − base), tensor by tensor."""
    origin = caller.download(base["artifact"])
    tuned = [caller.download(job["result"]["artifacts"][0]) for job in experts]
    merged = caller.download(merge["result"]["artifacts"][0])
    assert sorted(merged) == sorted(origin)
    assert any(not torch.equal(tuned[0][name], tuned[1][name]) for name in origin)  # they learned different things
    for name, tensor in origin.items():
        if not tensor.is_floating_point():
            assert torch.equal(merged[name], tensor)
            continue
        expected = tensor.double() + 0.5 * sum((model[name].double() - tensor.double()) for model in tuned)
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-7)


def check_comparison(caller: Caller) -> None:
    table = caller.read(
        "/v1/comparisons", checkpoints="base,merged,kind-expert,other-expert", tasks=",".join(TASKS), split="test"
    )
    assert [row["ref"] for row in table["rows"]] == ["base", "merged", "kind-expert", "other-expert"]
    for row in table["rows"]:
        measured = [row["values"][task] for task in TASKS]
        assert all(cell["n"] == 6 and 0 <= cell["value"] <= 1 for cell in measured)
        assert row["average"] == pytest.approx(sum(cell["value"] for cell in measured) / 2)
    assert table["rows"][2]["values"]["kind"]["normalized"] == 1.0
    rows = caller.read("/v1/metrics", checkpoint="merged")["items"]
    assert sorted(row["task"] for row in rows) == sorted(TASKS)


def check_log(caller: Caller, merge: Document) -> None:
    """The log as a stream: gap-free, ended by the final state; a reconnect then gets 204."""
    path, stream = f"/v1/jobs/{merge['id']}/events", {"Accept": "text/event-stream"}
    text = caller.client.get(path, headers=stream).text
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert (events[0]["type"], events[-1]["type"]) == ("job.queued", "job.succeeded")
    again = caller.client.get(path, headers={**stream, "Last-Event-ID": str(events[-1]["seq"])})
    assert again.status_code == 204


def check_archive(caller: Caller, merge: Document) -> None:
    content = caller.client.get(f"/v1/artifacts/{merge['result']['artifacts'][0]}/archive").content
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "recipe.json", "README.md"} <= names


def check_lineage(caller: Caller, merge: Document, base: Document, experts: list[Document]) -> None:
    lineage = caller.read(f"/v1/checkpoints/{merge['result']['checkpoint']}/lineage")
    sources = {edge["source"] for edge in lineage["edges"] if edge["target"] == merge["result"]["checkpoint"]}
    assert sources >= {base["id"], *(job["result"]["checkpoint"] for job in experts)}


def check_deduplication(caller: Caller, merge: Document) -> None:
    """The recipe, posted again by content, succeeds at once and is a version of its own."""
    recipe = caller.read(f"/v1/jobs/{merge['id']}/recipe")
    again = caller.made("/v1/merges", {**recipe, "output": {"name": "merged"}})
    assert (again["state"], again["deduplicated_from"]) == ("succeeded", merge["id"])
    assert caller.read("/v1/checkpoints/merged@2")["id"] == again["result"]["checkpoint"]


def check_deletion(caller: Caller, merge: Document) -> None:
    """Bytes that another version holds stay; a merge that is queued keeps its inputs; the last version frees them."""
    assert caller.client.delete(f"/v1/artifacts/{merge['result']['artifacts'][0]}").status_code == 204
    assert caller.client.get("/v1/checkpoints/merged@1").status_code == 404
    second = caller.read("/v1/checkpoints/merged@2")
    assert caller.download(second["artifact"])
    refused = caller.client.delete("/v1/checkpoints/base")
    assert (refused.status_code, refused.json()["code"]) == (409, "resource_in_use")
    assert caller.client.delete("/v1/checkpoints/merged@2").status_code == 204
    assert caller.client.get(f"/v1/artifacts/{second['artifact']}").status_code == 404
    kept = caller.read(f"/v1/checkpoints/{caller.read('/v1/checkpoints/base')['id']}/lineage")
    assert any(node["is_deleted"] for node in kept["nodes"])
