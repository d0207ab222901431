"""The client's commands against a running service: what they print, how they leave, what they refuse."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.torch
import torch

from app.cli.client import Client
from tests.embedded import Serve, run_amalgam, run_inside
from tests.workers.tiny_bert import CLASSES, PROMPTS, make_encoder, make_rows, write_rows


@pytest.fixture(scope="module")
def folder(service: Serve) -> Path:
    """A folder that the service may read: a base model, an expert, a task."""
    place = service.home.parent / "commands"
    make_encoder(place / "base")
    make_encoder(place / "expert", seed=1)
    parts = {"train": make_rows(), "test": make_rows()[::-1]}
    dataset = {split: write_rows(place / f"{split}.jsonl", rows).name for split, rows in parts.items()}
    task = {
        "name": "animals",
        "kind": "text-classification",
        "dataset": dataset,
        "classes": CLASSES,
        "head": {"kind": "label_prompts", "prompts": PROMPTS},
        "preprocessing": {"max_tokens": 16},
    }
    (place / "task.json").write_text(json.dumps(task))
    return place


@pytest.fixture(scope="module")
def registered(service: Serve, folder: Path) -> Serve:
    """The service with `base`, `expert` and the task `animals`."""
    done(service, "checkpoints", "register", str(folder / "base"), "--name", "base", "--wait")
    done(service, "checkpoints", "register", str(folder / "expert"), "-n", "expert", "--base", "base", "--wait")
    done(service, "tasks", "create", str(folder / "task.json"))
    return service


def done(service: Serve, *words: str) -> str:
    ended = run_inside(*words, url=service.url)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def answered(service: Serve, *words: str) -> Any:
    return json.loads(done(service, *words, "--json"))


def refused(service: Serve, *words: str) -> str:
    ended = run_inside(*words, url=service.url)
    assert ended.returncode == 1, ended.stdout
    return ended.stderr


def test_a_registered_checkpoint_is_shown_with_its_size_and_digest(registered: Serve) -> None:
    shown = done(registered, "checkpoints", "show", "base@1")

    assert "base@1" in shown
    assert "BertModel" in shown
    assert "ready" in shown


def test_lists_have_a_line_per_item_and_json_has_the_services_items(registered: Serve) -> None:
    lines = done(registered, "checkpoints", "list", "--name", "expert").splitlines()
    items = answered(registered, "checkpoints", "list", "--name", "expert")["items"]

    assert [line.split()[0] for line in lines] == ["name", *(f"expert@{item['version']}" for item in items)]
    assert items[0]["state"] == "ready"


def test_an_upload_arrives_whole(registered: Serve, folder: Path) -> None:
    uploaded = answered(registered, "checkpoints", "upload", str(folder / "base"), "--name", "sent", "--wait")
    original = answered(registered, "checkpoints", "show", "base")

    assert uploaded["state"] == "ready"
    assert uploaded["content_digest"] == original["content_digest"]


def test_a_broken_checkpoint_fails_the_wait_with_its_reason(registered: Serve, folder: Path) -> None:
    (folder / "broken.safetensors").write_bytes(b"junk")

    ended = run_inside(
        "checkpoints", "register", str(folder / "broken.safetensors"), "--name", "broken", "--wait", url=registered.url
    )

    assert ended.returncode == 1
    assert "invalid" in ended.stdout
    assert "broken.safetensors" in ended.stderr
    assert run_inside("checkpoints", "wait", "broken@1", url=registered.url).returncode == 1


def test_waiting_for_a_ready_checkpoint_returns_at_once(registered: Serve) -> None:
    assert answered(registered, "checkpoints", "wait", "base")["state"] == "ready"


def test_deleting_takes_a_checkpoint_away(registered: Serve, folder: Path) -> None:
    done(registered, "checkpoints", "register", str(folder / "expert"), "--name", "passing", "--wait")

    assert done(registered, "checkpoints", "delete", "passing") == "passing is deleted.\n"
    assert "(not_found)" in refused(registered, "checkpoints", "show", "passing")


def test_a_task_is_made_from_a_file_with_its_data_beside_it(registered: Serve, folder: Path) -> None:
    task = answered(registered, "tasks", "show", "animals")

    assert task["dataset"]["test"]["uri"] == (folder / "test.jsonl").as_uri()
    assert "color, animal" in done(registered, "tasks", "show", "animals")
    assert "animals" in done(registered, "tasks", "list")


def test_a_task_file_that_is_no_json_is_named(registered: Serve, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text("{")

    ended = run_inside("tasks", "create", str(tmp_path / "task.json"), url=registered.url)

    assert ended.returncode == 2
    assert "is not JSON" in ended.stderr


def test_a_merge_is_followed_measured_and_right(registered: Serve, folder: Path) -> None:
    words = ("merge", "task_arithmetic", "--base", "base", "expert=0.5", "-p", "scaling_coefficient=1.0")

    job = answered(registered, *words, "--name", "half", "--evaluate", "animals", "--wait")

    assert job["state"] == "succeeded"
    artifact = answered(registered, "checkpoints", "show", "half")["artifact"]
    assert job["result"]["artifacts"][0] == artifact
    weights = merged_weights(registered, "half")
    base = safetensors.torch.load_file(folder / "base" / "model.safetensors")
    expert = safetensors.torch.load_file(folder / "expert" / "model.safetensors")
    assert sorted(weights) == sorted(base)
    for name, tensor in base.items():
        torch.testing.assert_close(weights[name], tensor + 0.5 * (expert[name] - tensor))


def merged_weights(service: Serve, reference: str) -> dict[str, torch.Tensor]:
    artifact = answered(service, "checkpoints", "show", reference)["artifact"]
    content = httpx.get(f"{service.url}/v1/artifacts/{artifact}/files/model.safetensors").raise_for_status().content
    return safetensors.torch.load(content)


def test_a_merge_is_repeated_from_its_recipe(registered: Serve, tmp_path: Path) -> None:
    job = answered(registered, "merge", "average", "base", "expert", "--name", "first", "--wait")
    address = f"{registered.url}/v1/artifacts/{job['result']['artifacts'][0]}/files/recipe.json"
    recipe = tmp_path / "recipe.json"
    recipe.write_bytes(httpx.get(address).raise_for_status().content)

    again = answered(registered, "merge", "--recipe", str(recipe), "--name", "second")

    assert (again["deduplicated_from"], again["recipe_digest"]) == (job["id"], job["recipe_digest"])
    for words in (("merge",), ("merge", "ties", "--recipe", str(recipe)), ("merge", "--recipe", str(tmp_path / "no"))):
        assert run_inside(*words, url=registered.url).returncode == 2


def test_a_merge_is_read_from_a_document_of_mergekit(registered: Serve, tmp_path: Path) -> None:
    document = tmp_path / "merge.yaml"
    text = (
        "merge_method: linear\nmodels: [{model: base}, {model: expert}]\nparameters: {weight: 1}\nout_dtype: float16\n"
    )
    document.write_text(text)

    job = answered(registered, "merge", "--recipe", str(document), "--name", "mixed", "--wait")

    assert (job["state"], job["spec"]["method"]) == ("succeeded", "average")
    assert (job["spec"]["output"]["dtype"], job["spec"]["output"]["name"]) == ("float16", "mixed")
    document.write_text(text.replace("weight", "wieght"))
    refused = run_inside("merge", "--recipe", str(document), url=registered.url)
    assert refused.returncode == 2
    assert "/parameters/wieght" in refused.stderr.replace("\n", "")


def test_a_merge_for_people_tells_progress_apart_from_the_result(registered: Serve) -> None:
    ended = run_inside("merge", "average", "base", "expert", "--evaluate", "animals", "--wait", url=registered.url)

    assert ended.returncode == 0
    assert "merge: done" in ended.stderr
    assert "state" in ended.stdout
    assert "accuracy" in ended.stdout


def test_a_plan_runs_nothing(registered: Serve) -> None:
    n_jobs = len(answered(registered, "jobs", "list", "--limit", "200")["items"])

    plan = answered(registered, "merge", "ties", "--base", "base", "expert", "--plan")
    shown = done(registered, "merge", "ties", "--base", "base", "expert", "--plan")

    assert plan["is_runnable"]
    assert "bytes written" in shown
    assert len(answered(registered, "jobs", "list", "--limit", "200")["items"]) == n_jobs


def test_a_misspelt_parameter_is_refused_in_the_services_words(registered: Serve) -> None:
    said = refused(registered, "merge", "ties", "--base", "base", "expert", "-p", "densty=0.2")

    assert "(invalid_parameters)" in said
    assert "/parameters/densty" in said
    assert "Did you mean 'density'?" in said


def test_every_unknown_checkpoint_is_named_at_once(registered: Serve) -> None:
    said = refused(registered, "merge", "average", "nobody", "nothing")

    assert "(checkpoint_not_found)" in said
    assert "/models/0/checkpoint" in said
    assert "/models/1/checkpoint" in said


def test_a_refusal_as_json_is_the_problem_document(registered: Serve) -> None:
    ended = run_inside("merge", "tie", "base", "--json", url=registered.url)

    problem = json.loads(ended.stderr)
    assert ended.returncode == 1
    assert (problem["code"], problem["status"]) == ("unknown_method", 422)


def test_fine_tuning_makes_a_checkpoint_of_the_task(registered: Serve) -> None:
    job = answered(
        registered, "finetune", "base", "animals", "-p", "steps=2", "-p", "batch_size=4", "--name", "tuned", "--wait"
    )

    assert job["state"] == "succeeded"
    assert answered(registered, "checkpoints", "show", "tuned")["task"] == "animals"


def test_a_sweep_keeps_the_best_merge_and_tells_every_point(registered: Serve) -> None:
    words = (
        "sweep",
        "task_arithmetic",
        "expert",
        "--base",
        "base",
        "-g",
        "scaling_coefficient=0:1:0.5",
        "-e",
        "animals",
    )

    refusal = refused(registered, *words)
    told = done(registered, *words, "--split", "train", "--name", "swept", "--wait")

    assert "task 'animals' has no validation split" in refusal
    assert [f"scaling_coefficient {value}: 0." in told for value in (0.0, 0.5, 1.0)] == [True] * 3
    assert "area under the curve, scaling_coefficient from 0.0 to 1.0: 0." in told
    (job,) = httpx.get(f"{registered.url}/v1/jobs?kind=sweep").json()["items"]
    assert answered(registered, "checkpoints", "show", "swept")["id"] == job["result"]["checkpoint"]
    assert len(job["result"]["evaluations"]) == 1
    events = httpx.get(f"{registered.url}/v1/jobs/{job['id']}/events").json()["items"]
    points = [event["data"]["parameters"] for event in events if event["type"] == "job.point"]
    assert points == [{"scaling_coefficient": value} for value in (0.0, 0.5, 1.0)]


def test_comparing_says_who_leads_in_plain_words(registered: Serve) -> None:
    for reference in ("base", "expert"):
        done(registered, "evaluate", reference, "animals", "--wait")

    table = done(registered, "compare", "base", "expert", "--task", "animals", "--individual", "animals=expert")
    document = answered(registered, "compare", "base", "expert", "--task", "animals")

    assert "is best on the mean of 1 task" in table
    assert "of individual" in table
    assert [row["ref"] for row in document["rows"]] == ["base", "expert"]


def test_methods_are_listed_and_shown_with_ranges(registered: Serve) -> None:
    assert "task_arithmetic" in done(registered, "methods")
    shown = done(registered, "methods", "ties")
    assert "density" in shown
    assert "0.2" in shown
    assert "ties" in refused(registered, "methods", "tie")


def test_a_job_can_be_listed_shown_watched_and_retried(registered: Serve) -> None:
    job = answered(registered, "evaluate", "base", "animals", "--wait")

    assert job["id"] in done(registered, "jobs", "list", "--kind", "evaluate")
    assert job["id"] in done(registered, "jobs", "show", job["id"])
    watched = done(registered, "jobs", "watch", job["id"])
    assert watched.splitlines() == done(registered, "jobs", "events", job["id"]).splitlines()
    assert [line.split()[0] for line in watched.splitlines()] == [str(n + 1) for n in range(len(watched.splitlines()))]
    retried = answered(registered, "jobs", "retry", job["id"], "--wait")
    assert (retried["retry_of"], retried["state"]) == (job["id"], "succeeded")


def test_watching_a_job_that_failed_fails_with_its_reason(registered: Serve) -> None:
    items = answered(registered, "jobs", "list", "--state", "failed")["items"]

    ended = run_inside("jobs", "watch", items[0]["id"], url=registered.url)

    assert ended.returncode == 1
    assert "Error: " in ended.stderr


def test_a_job_that_has_ended_cannot_be_canceled(registered: Serve) -> None:
    job = answered(registered, "evaluate", "base", "animals", "--wait")

    assert "(job_is_final)" in refused(registered, "jobs", "cancel", job["id"])


def test_a_running_job_can_be_canceled(registered: Serve) -> None:
    words = ("finetune", "base", "animals", "-p", "steps=100000", "-p", "batch_size=4", "--name", "endless")
    job = answered(registered, *words)

    canceled = answered(registered, "jobs", "cancel", job["id"])
    ended = run_inside("jobs", "watch", job["id"], url=registered.url)

    assert canceled["state"] in ("canceled", "canceling")
    assert ended.returncode == 1
    assert answered(registered, "jobs", "show", job["id"])["state"] == "canceled"


def test_no_service_at_the_address_leaves_with_its_own_status() -> None:
    ended = run_amalgam("jobs", "list", "--url", "http://127.0.0.1:1")

    assert ended.returncode == 3
    assert "Start one with `amalgam serve`" in ended.stderr


def test_watching_survives_the_loss_of_the_api_without_losing_an_event(registered: Serve) -> None:
    words = ("finetune", "base", "animals", "-p", "steps=100000", "-p", "batch_size=4", "--name", "watched")
    job = answered(registered, *words)
    seen = []

    with Client(registered.url, patience_seconds=60) as client:
        for event in client.events(job["id"]):
            seen.append(event)
            if event["type"] == "job.started":
                api = registered.child("api")
                assert api is not None
                api.kill()
                client.post(f"/v1/jobs/{job['id']}/cancel")

    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["type"] == "job.canceled"


def test_a_task_is_added_to_a_multitask_artifact_and_materialized(registered: Serve) -> None:
    done(registered, "merge", "post_pruning", "expert", "--base", "base", "-p", "density=1.0", "-n", "tasks", "--wait")
    added = answered(registered, "add-tasks", "tasks", "base", "--wait")
    artifact = added["result"]["artifacts"][0]

    made = answered(registered, "materialize", artifact, "expert", "--name", "expert-again", "--wait")

    again = answered(registered, "checkpoints", "show", "expert-again")
    assert again["id"] == made["result"]["checkpoint"]
    assert again["weights_digest"] == answered(registered, "checkpoints", "show", "expert")["weights_digest"]
    assert answered(registered, "checkpoints", "show", "tasks@2")["kind"] == "multitask"
    both = answered(registered, "materialize", artifact, "expert", "base", "--name", "of", "--wait")
    of_expert = answered(registered, "checkpoints", "show", "of-expert")
    assert of_expert["id"] == both["result"]["data"]["checkpoints"]["expert"]
    assert of_expert["weights_digest"] == again["weights_digest"]


def test_materializing_refuses_what_has_no_patches(registered: Serve) -> None:
    done(registered, "merge", "post_pruning", "expert", "--base", "base", "-n", "one-task", "--wait")

    refusal = refused(registered, "materialize", "one-task", "animals")
    registered_only = run_inside("materialize", "base", "animals", url=registered.url)

    assert "has no patch for task 'animals'; it has: expert" in refusal
    assert registered_only.returncode == 2
    assert "lies where it was registered" in registered_only.stderr
