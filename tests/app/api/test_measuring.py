"""Tasks, evaluations, fine-tunings, analyses, metrics and comparisons over HTTP."""

from typing import Any

import pytest

from app.domain.catalog import Catalog, load_catalog
from app.services import measuring
from tests.app.api.house import Document, House, draw
from tests.workers import tiny_bert, tiny_language

HEAD = {"kind": "label_prompts", "prompts": list(tiny_bert.PROMPTS)}


def refused(house: House, path: str, body: object, status: int, code: str) -> Document:
    response = house.post(path, body)
    assert response.status_code == status, response.text
    problem: Document = response.json()
    assert problem["code"] == code
    return problem


# --- tasks ------------------------------------------------------------------------------------------------------------


def test_a_task_is_made_once(any_house: House) -> None:
    house = any_house
    first = house.post("/v1/tasks", house.task_body())
    again = house.post("/v1/tasks", house.task_body())

    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert first.headers["location"] == again.headers["location"] == f"/v1/tasks/{first.json()['id']}"
    assert first.json()["preprocessing"]["max_tokens"] == 8
    assert first.json()["preprocessing"]["pooling"] == "mean"  # defaults are filled in
    assert len(first.json()["dataset"]["train"]["sha256"]) == 64


def test_other_content_under_a_name_is_a_conflict(house: House) -> None:
    house.made("/v1/tasks", house.task_body())

    problem = refused(house, "/v1/tasks", house.task_body(head=HEAD | {"scale": 1.0}), 409, "name_taken")

    assert problem["errors"][0]["pointer"] == "/name"


def test_changed_data_is_other_content(house: House) -> None:
    body = house.task_body()
    house.made("/v1/tasks", body)
    tiny_bert.write_rows(house.data / "task-kind" / "test.jsonl", [{"text": "cat", "label": 1}])

    refused(house, "/v1/tasks", body, 409, "name_taken")


def test_a_task_is_found_by_name_and_by_id(house: House) -> None:
    made = house.made("/v1/tasks", house.task_body())

    assert house.read("/v1/tasks/kind") == house.read(f"/v1/tasks/{made['id']}") == made
    assert house.get("/v1/tasks/kind").headers["etag"] == f'"{made["digest"]}"'
    assert house.read("/v1/tasks")["items"] == [made]
    assert house.read("/v1/tasks?kind=image-classification")["items"] == []
    assert "Did you mean 'kind'" in house.get("/v1/tasks/knd").json()["detail"]


def test_a_deleted_task_is_gone(house: House) -> None:
    house.made("/v1/tasks", house.task_body())

    assert house.client.delete("/v1/tasks/kind").status_code == 204
    assert house.get("/v1/tasks/kind").status_code == 404
    assert house.client.delete("/v1/tasks/kind").status_code == 404


def test_a_task_is_not_deleted_while_a_job_needs_it(house: House) -> None:
    bert = house.bert()
    house.made("/v1/tasks", house.task_body())
    job = house.made("/v1/evaluations", {"checkpoint": bert, "tasks": ["kind"]})

    response = house.client.delete("/v1/tasks/kind")

    assert (response.status_code, response.json()["code"]) == (409, "resource_in_use")
    assert job["id"] in response.json()["detail"]
    house.work()
    assert house.client.delete("/v1/tasks/kind").status_code == 204


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"kind": "text-clasification"}, "unknown_task_kind", "/kind"),
        ({"metric": "acuracy"}, "validation_failed", "/metric"),
        ({"preprocessing": {"max_token": 3}}, "invalid_parameters", "/preprocessing/max_token"),
        ({"preprocessing": {"max_tokens": 0}}, "invalid_parameters", "/preprocessing/max_tokens"),
        ({"classes": ["a"]}, "validation_failed", "/classes"),
        ({"classes": ["a", "a"]}, "validation_failed", "/"),
        ({"kind": "perplexity", "head": {"kind": "own"}, "preprocessing": {}}, "validation_failed", "/classes"),
        ({"head": {"kind": "prototypes"}, "dataset": {"test": "file:///x.jsonl"}}, "validation_failed", "/"),
        ({"dataset": {"test": "file:///data/x.npz"}}, "uri_not_allowed", "/dataset/test"),
        ({"head": HEAD | {"prompts": ["a", "b", "c"]}}, "validation_failed", "/"),
        ({"head": {"kind": "nothing"}}, "validation_failed", "/head"),
        ({"head": HEAD | {"base_model": "nothing"}}, "checkpoint_not_found", "/head/base_model"),
        ({"dataset": {}}, "validation_failed", "/dataset"),
        ({"dataset": {"dev": "file:///x"}}, "validation_failed", "/dataset/dev"),
        ({"dataset": {"test": "file:///etc/passwd"}}, "uri_not_allowed", "/dataset/test"),
        ({"dataset": {"test": "http://example.org/x"}}, "uri_not_allowed", "/dataset/test"),
        ({"dataset": {"test": "file:///data/x.csv"}}, "uri_not_allowed", "/dataset/test"),
    ],
)
def test_a_faulty_task_is_refused_with_the_place(house: House, changes: Document, code: str, pointer: str) -> None:
    problem = refused(house, "/v1/tasks", house.task_body(**changes), 422, code)

    assert problem["errors"][0]["pointer"].removesuffix("/[key]") == pointer


@pytest.mark.parametrize("other", ["train", "validation"])
def test_a_test_split_that_is_another_split_too_is_refused(house: House, other: str) -> None:
    body = house.task_body()
    copy = house.data / "copy.jsonl"
    copy.write_bytes((house.data / "task-kind" / "test.jsonl").read_bytes())
    dataset = body["dataset"] | {other: copy.as_uri()}

    problem = refused(house, "/v1/tasks", body | {"dataset": dataset}, 422, "validation_failed")

    assert problem["errors"][0]["pointer"] == "/dataset/test"
    assert f"test has the same content as {other}; expected examples that nothing was" in problem["detail"]
    assert "leave one of the two out" in problem["detail"]
    del dataset["test"]
    house.made("/v1/tasks", body | {"dataset": dataset | {"train": copy.as_uri(), "validation": copy.as_uri()}})


def test_a_data_file_that_is_not_there_is_not_found(house: House) -> None:
    body = house.task_body(dataset={"test": (house.data / "nothing.jsonl").as_uri()})

    problem = refused(house, "/v1/tasks", body, 404, "uri_not_found")

    assert problem["errors"][0]["pointer"] == "/dataset/test"
    assert str(house.folder / "home") not in problem["detail"]


# --- evaluations ------------------------------------------------------------------------------------------------------


def test_an_evaluation_makes_metrics(any_house: House) -> None:
    house = any_house
    bert = house.bert()
    task = house.made("/v1/tasks", house.task_body())

    job = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"], "split": "validation"})

    assert job["state"] == "succeeded", job["problem"]
    (metric,) = job["result"]["metrics"]
    assert (metric["checkpoint"], metric["task"], metric["task_id"]) == (bert, "kind", task["id"])
    assert (metric["name"], metric["split"], metric["n"], metric["unit"]) == ("accuracy", "validation", 6, "fraction")
    assert metric["stderr"] == pytest.approx((metric["value"] * (1 - metric["value"]) / 6) ** 0.5)
    assert house.read("/v1/metrics?details=true")["items"] == [metric]
    details = metric["details"]
    assert house.read("/v1/metrics")["items"] == [metric | {"details": None}]
    assert metric["interval"] == details["interval"]
    assert details["n_correct"] == round(metric["value"] * 6)
    assert details["interval"]["low"] <= metric["value"] <= details["interval"]["high"]
    assert [(row["name"], row["n"]) for row in details["per_class"]] == [("color", 3), ("animal", 3)]


def test_equal_weights_are_measured_once(any_house: House) -> None:
    house = any_house
    house.bert()
    twin = house.bert("twin")
    house.bert("other", seed=1)
    house.made("/v1/tasks", house.task_body())
    first = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    again = house.made("/v1/evaluations", {"checkpoint": "twin", "tasks": ["kind"]})

    assert (again["state"], again["deduplicated_from"]) == ("succeeded", first["id"])
    (measured,), (taken,) = first["result"]["metrics"], again["result"]["metrics"]
    assert (taken["checkpoint"], taken["job"]) == (twin, again["id"])
    assert [taken[name] for name in ("value", "n", "details")] == [measured[name] for name in ("value", "n", "details")]
    assert len(house.read("/v1/metrics?checkpoint=twin")["items"]) == 1
    for body in (
        {"checkpoint": "other", "tasks": ["kind"]},
        {"checkpoint": "twin", "tasks": ["kind"], "split": "validation"},
        {"checkpoint": "twin", "tasks": ["kind"], "force": True},
    ):
        assert house.made("/v1/evaluations", body)["state"] == "queued"


def test_what_an_older_evaluator_measured_is_measured_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    first = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})
    catalog = load_catalog()

    def at_next_version(kind: str) -> Catalog:
        cards = [
            card.model_copy(update={"version": card.version + 1}) if card.name == kind else card
            for card in catalog.evaluators
        ]
        return catalog.model_copy(update={"evaluators": tuple(cards)})

    monkeypatch.setattr(measuring, "load_catalog", lambda: at_next_version("perplexity"))  # of other tasks
    same = house.made("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})
    monkeypatch.setattr(measuring, "load_catalog", lambda: at_next_version("text-classification"))
    newer = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})
    again = house.made("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    assert same["deduplicated_from"] == first["id"]
    assert (newer["state"], newer["deduplicated_from"]) == ("succeeded", None)
    assert again["deduplicated_from"] == newer["id"]


def test_only_what_is_not_known_is_measured(house: House) -> None:
    house.bert()
    for name, changes in (("kind", {}), ("scaled", {"head": HEAD | {"scale": 3.0}})):
        house.made("/v1/tasks", house.task_body(name, **changes))
    first = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    (house.data / "task-kind" / "test.jsonl").unlink()  # whoever measured on it again would fail
    both = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["scaled", "kind"]})

    assert both["state"] == "succeeded", both["problem"]
    assert [item["measured_by"] for item in both["spec"]["tasks"]] == [None, first["id"]]
    assert [metric["task"] for metric in both["result"]["metrics"]] == ["scaled", "kind"]


def test_metrics_are_filtered(any_house: House) -> None:
    house = any_house
    house.bert()
    house.made("/v1/tasks", house.task_body())
    job = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    for query, n in (
        ("checkpoint=bert", 1),
        ("task=kind", 1),
        ("name=accuracy&split=test", 1),
        (f"job={job['id']}", 1),
        ("split=train", 0),
        ("name=f1", 0),
    ):
        assert len(house.read(f"/v1/metrics?{query}")["items"]) == n, query
    assert house.get("/v1/metrics?checkpoint=nothing").status_code == 422


def test_evaluations_are_found_by_their_task(any_house: House) -> None:
    house = any_house
    house.bert()
    house.made("/v1/tasks", house.task_body())
    job = house.made("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    house.made("/v1/tasks", house.task_body("kind_2"))
    house.made("/v1/tasks", house.task_body("kindX2"))
    both = house.made("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind", "kind_2"]})

    def ids(query: str) -> list[str]:
        return [found["id"] for found in house.read(f"/v1/jobs?{query}&order=created_at")["items"]]

    assert ids("task=kind") == [job["id"], both["id"]]
    assert ids("task=kind_2") == [both["id"]]
    assert (
        ids("task=kind&state=failed")
        == ids("task=kin")
        == ids("task=kindX2")
        == ids("task=%25")
        == ids("task=%22")
        == []
    )


@pytest.mark.parametrize(
    ("tasks", "code", "pointer"),
    [
        (["nothing", "kind"], "task_not_found", "/tasks/0"),
        ([{"task": "nothing"}], "task_not_found", "/tasks/0/task"),
        (["kind", "kind"], "validation_failed", "/tasks/0"),
        ([{"task": "kind", "split": "train"}, "kind"], "validation_failed", "/tasks"),
        ([], "validation_failed", "/tasks"),
    ],
)
def test_faulty_tasks_of_an_evaluation_are_refused(house: House, tasks: Any, code: str, pointer: str) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())

    problem = refused(house, "/v1/evaluations", {"checkpoint": "bert", "tasks": tasks}, 422, code)

    assert problem["errors"][0]["pointer"] == pointer


def test_a_split_that_the_task_has_not_is_refused(house: House) -> None:
    house.bert()
    body = house.task_body()
    house.made("/v1/tasks", body | {"dataset": {"test": body["dataset"]["test"]}})

    problem = refused(
        house, "/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"], "split": "train"}, 422, "validation_failed"
    )

    assert "has no train split; it has test" in problem["detail"]


def test_broken_data_fails_the_job_with_file_and_line(house: House) -> None:
    house.bert()
    body = house.task_body()
    tiny_bert.write_rows(house.data / "task-kind" / "test.jsonl", [{"text": "cat", "label": 1}, {"text": "dog"}])
    house.made("/v1/tasks", body)

    job = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    assert (job["state"], job["problem"]["code"]) == ("failed", "invalid_dataset")
    assert "line 2" in job["problem"]["detail"]


def test_data_that_changed_fails_the_job(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    tiny_bert.write_rows(house.data / "task-kind" / "test.jsonl", [{"text": "cat", "label": 1}])

    job = house.finish("/v1/evaluations", {"checkpoint": "bert", "tasks": ["kind"]})

    assert (job["state"], job["problem"]["code"]) == ("failed", "input_changed")


# --- the base model behind a head -------------------------------------------------------------------------------------


def evaluated_base(house: House, checkpoint: str) -> str:
    job = house.made("/v1/evaluations", {"checkpoint": checkpoint, "tasks": ["kind"]})
    return str(job["spec"]["tasks"][0]["base_model"])


def test_a_checkpoint_without_a_base_is_its_own(house: House) -> None:
    bert = house.bert()
    house.made("/v1/tasks", house.task_body())

    assert evaluated_base(house, "bert") == bert


def test_the_root_of_the_chain_is_the_base(house: House) -> None:
    root = house.bert("root")
    house.bert("middle", seed=1, base_checkpoint="root")
    house.bert("leaf", seed=2, base_checkpoint="middle")
    house.made("/v1/tasks", house.task_body())

    assert evaluated_base(house, "leaf") == root


def test_a_head_that_names_its_base_keeps_it(house: House) -> None:
    other = house.bert("other", seed=5)
    house.bert()
    task = house.made("/v1/tasks", house.task_body(head=HEAD | {"base_model": "other"}))

    assert task["head_base_model"] == other
    assert evaluated_base(house, "bert") == other


def test_a_merge_has_the_base_that_all_inputs_share(house: House) -> None:
    root = house.bert("root")
    for index in (1, 2):
        house.bert(f"model-{index}", seed=index, base_checkpoint="root")
    house.made("/v1/tasks", house.task_body())
    models = [{"checkpoint": "model-1"}, {"checkpoint": "model-2"}]

    house.finish("/v1/merges", {"method": "average", "models": models, "output": {"name": "merged"}})

    assert evaluated_base(house, "merged") == root


def test_a_merge_of_strangers_has_no_base(house: House) -> None:
    for index in (1, 2):
        house.bert(f"model-{index}", seed=index)
    house.made("/v1/tasks", house.task_body())
    body = {"method": "average", "models": [{"checkpoint": "model-1"}, {"checkpoint": "model-2"}]}

    problem = refused(house, "/v1/merges", body | {"evaluate": ["kind"]}, 422, "base_model_unknown")
    assert problem["errors"][0]["pointer"] == "/evaluate"
    house.finish("/v1/merges", body | {"output": {"name": "merged"}})
    refused(house, "/v1/evaluations", {"checkpoint": "merged", "tasks": ["kind"]}, 422, "base_model_unknown")


# --- merges that are measured -----------------------------------------------------------------------------------------


def test_a_merge_is_measured_on_each_task_by_a_job_of_its_own(house: House) -> None:
    house.bert("root")
    for index in (1, 2):
        house.bert(f"model-{index}", seed=index, base_checkpoint="root")
    house.made("/v1/tasks", house.task_body())
    house.made("/v1/tasks", house.task_body("other"))
    body = {
        "method": "average",
        "models": [{"checkpoint": "model-1"}, {"checkpoint": "model-2"}],
        "evaluate": ["kind", {"task": "other", "split": "validation"}],
        "priority": 7,
    }

    merge = house.finish("/v1/merges", body)

    evaluations = [house.read(f"/v1/jobs/{job_id}") for job_id in merge["result"]["evaluations"]]
    assert [job["state"] for job in evaluations] == ["succeeded", "succeeded"]
    assert {job["parent"] for job in evaluations} == {merge["id"]}
    assert {job["priority"] for job in evaluations} == {7}
    assert merge["children"] == sorted(merge["result"]["evaluations"])
    metrics = house.read(f"/v1/metrics?checkpoint={merge['result']['checkpoint']}")["items"]
    assert sorted((metric["task"], metric["split"]) for metric in metrics) == [
        ("kind", "test"),
        ("other", "validation"),
    ]


def test_a_failed_evaluation_leaves_the_merge_standing(house: House) -> None:
    house.bert("root")
    body = house.task_body()
    house.made("/v1/tasks", body)
    tiny_bert.write_rows(house.data / "task-kind" / "test.jsonl", [{"text": "dog"}])

    merge = house.finish("/v1/merges", {"method": "average", "models": [{"checkpoint": "root"}], "evaluate": ["kind"]})

    assert merge["state"] == "succeeded"
    assert house.read(f"/v1/jobs/{merge['result']['evaluations'][0]}")["state"] == "failed"
    assert house.read(f"/v1/checkpoints/{merge['result']['checkpoint']}")["state"] == "ready"


def test_a_deduplicated_merge_is_measured_too(any_house: House) -> None:
    house = any_house
    house.bert("root")
    house.made("/v1/tasks", house.task_body())
    body = {"method": "average", "models": [{"checkpoint": "root"}]}
    house.finish("/v1/merges", body)

    merge = house.made("/v1/merges", body | {"evaluate": ["kind"]})
    house.work()

    assert merge["state"] == "succeeded"
    (evaluation,) = merge["result"]["evaluations"]
    assert merge["children"] == [evaluation]
    assert house.read(f"/v1/jobs/{evaluation}")["result"]["checkpoint"] == merge["result"]["checkpoint"]


# --- fine-tunings -----------------------------------------------------------------------------------------------------


def test_a_fine_tuning_makes_a_checkpoint_of_its_task(any_house: House) -> None:
    house = any_house
    bert = house.bert()
    house.made("/v1/tasks", house.task_body())
    body = {
        "base_model": "bert",
        "task": "kind",
        "parameters": {"steps": 3, "batch_size": 4},
        "output": {"name": "expert", "tags": {"a": "b"}},
    }

    job = house.finish("/v1/finetunes", body)

    assert job["state"] == "succeeded", job["problem"]
    expert = house.read("/v1/checkpoints/expert")
    assert expert["id"] == job["result"]["checkpoint"]
    assert (expert["base_checkpoint"], expert["task"], expert["tags"]) == (bert, "kind", {"a": "b"})
    assert job["spec"]["parameters"]["learning_rate"] == 5e-5  # defaults are filled in
    assert [metric["split"] for metric in job["result"]["metrics"]] == ["validation"]
    assert house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")["checkpoint"] == expert["id"]


def train_adapter(house: House, name: str, technique: str = "linearized_lora", **changes: Any) -> Document:
    parameters = {"steps": 2, "batch_size": 4, "rank": 2}
    body = {"base_model": "bert", "task": "kind", "technique": technique, "parameters": parameters,
            "output": {"name": name}}  # fmt: skip
    return house.finish("/v1/finetunes", body | changes)


def test_an_adapter_is_trained_evaluated_and_merged(house: House) -> None:
    bert = house.bert()
    house.made("/v1/tasks", house.task_body())
    for name, technique in (("plain", "lora"), ("linear-0", "linearized_lora"), ("linear-1", "linearized_lora")):
        job = train_adapter(house, name, technique, seed=int(name == "linear-1"))
        assert job["state"] == "succeeded", job["problem"]
        made = house.read(f"/v1/checkpoints/{name}")
        assert (made["kind"], made["base_checkpoint"]) == ("adapter", bert)
        on_validation = job["result"]["metrics"][0]["value"]
        evaluation = house.finish("/v1/evaluations", {"checkpoint": name, "tasks": ["kind"], "split": "validation"})
        assert evaluation["result"]["metrics"][0]["value"] == on_validation
    files = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")["files"]
    assert {file["path"] for file in files} >= {"linearized_adapter_model.safetensors", "adapter_model.safetensors"}

    models = [{"checkpoint": "linear-0"}, {"checkpoint": "linear-1"}]
    merge = house.finish("/v1/merges", {"method": "linearized_lora", "base_model": "bert", "models": models})

    assert merge["state"] == "succeeded", merge["problem"]


def test_validations_become_metrics_with_their_steps_and_leave_comparisons_alone(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    parameters = {"steps": 5, "batch_size": 4, "validate_every": 2}
    body = {"base_model": "bert", "task": "kind", "parameters": parameters, "output": {"name": "expert"}}

    job = house.finish("/v1/finetunes", body)

    found = house.read(f"/v1/metrics?job={job['id']}")["items"]
    assert sorted((row["step"] or 99, row["name"], row["split"]) for row in found) == [
        (step, "accuracy", "validation") for step in (2, 4, 5, 99)
    ]
    assert [metric["step"] for metric in job["result"]["metrics"]] == [None]
    assert [row["interval"] is None for row in found] == [row["step"] is not None for row in found]
    assert [one["step"] for one in job["result"]["data"]["validations"]] == [2, 4, 5]
    house.finish("/v1/evaluations", {"checkpoint": "expert", "tasks": ["kind"], "split": "validation"})
    compared = house.read("/v1/comparisons?checkpoints=expert&tasks=kind&split=validation")
    assert compared["rows"][0]["values"]["kind"]["value"] == job["result"]["metrics"][0]["value"]


def test_a_family_has_one_base_and_tells_where_it_began(house: House) -> None:
    house.bert()
    house.bert("other", seed=1)
    house.made("/v1/tasks", house.task_body())
    train_adapter(house, "first", parameters={"steps": 1, "rank": 2, "init_seed": 7})
    train_adapter(house, "stranger", base_model="other")
    ask = {"base_model": "bert", "task": "kind", "technique": "linearized_lora", "parameters": {"rank": 2, "steps": 1}}

    second = house.finish("/v1/finetunes", ask | {"family": "first", "output": {"name": "second"}})

    assert second["state"] == "succeeded", second["problem"]
    assert second["spec"]["family"] == house.read("/v1/checkpoints/first")["id"]
    for changes, pointer, message in (
        ({"family": "bert"}, "/family", "is of kind dense"),
        ({"family": "stranger"}, "/family", "one family has one base"),
        ({"family": "first", "technique": "lora"}, "/family", "do not tell where they began"),
        ({"family": "first", "parameters": {"init_seed": 1}}, "/parameters/init_seed", "leave out one of"),
        ({"family": "nobody"}, "/family", ""),
    ):
        problem = house.post("/v1/finetunes", ask | changes).json()
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, pointer), problem
        assert message in problem["detail"]


def test_a_fine_tuning_of_a_task_with_a_long_name_has_a_name_that_fits(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body() | {"name": "t" * 128})

    job = house.finish("/v1/finetunes", {"base_model": "bert", "task": "t" * 128, "parameters": {"steps": 1}})

    name = house.read(f"/v1/checkpoints/{job['result']['checkpoint']}")["name"]
    assert name == "t" * 123 + "-full"


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"technique": "ful"}, "unknown_technique", "/technique"),
        ({"parameters": {"step": 1}}, "invalid_parameters", "/parameters/step"),
        ({"parameters": {"steps": 0}}, "invalid_parameters", "/parameters/steps"),
        ({"parameters": {"keep": "best"}}, "validation_failed", "/parameters/keep"),
        ({"parameters": {"early_stopping_patience": 1}}, "validation_failed", "/parameters/early_stopping_patience"),
        ({"base_model": "nothing"}, "checkpoint_not_found", "/base_model"),
        ({"task": "nothing"}, "task_not_found", "/task"),
    ],
)
def test_a_faulty_fine_tuning_is_refused(house: House, changes: Document, code: str, pointer: str) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())

    problem = refused(house, "/v1/finetunes", {"base_model": "bert", "task": "kind", **changes}, 422, code)

    assert problem["errors"][0]["pointer"] == pointer


@pytest.mark.parametrize("technique", ["full", "lora"])
def test_a_classifier_is_fine_tuned_under_its_own_head_and_measured(house: House, technique: str) -> None:
    house.register_folder("classifier", tiny_bert.make_classifier(house.data / "classifier", tiny_bert.CLASSES))
    house.made("/v1/tasks", house.task_body(head={"kind": "own"}))
    body = {"base_model": "classifier", "task": "kind", "technique": technique, "output": {"name": "expert"},
            "parameters": {"steps": 3, "batch_size": 4, "freeze_head": False}}  # fmt: skip

    job = house.finish("/v1/finetunes", body)

    assert job["state"] == "succeeded", job["problem"]
    evaluation = house.finish("/v1/evaluations", {"checkpoint": "expert", "tasks": ["kind"], "split": "validation"})
    assert evaluation["result"]["metrics"][0]["value"] == job["result"]["metrics"][0]["value"]


def test_a_task_without_training_data_is_refused(house: House) -> None:
    house.bert()
    body = house.task_body()
    house.made("/v1/tasks", body | {"dataset": {"test": body["dataset"]["test"]}})

    problem = refused(house, "/v1/finetunes", {"base_model": "bert", "task": "kind"}, 422, "validation_failed")

    assert "has no train split" in problem["detail"]


# --- analyses and comparisons -----------------------------------------------------------------------------------------


def test_an_analysis_gives_cosines_and_a_report(house: House) -> None:
    house.family(2)

    job = house.finish(
        "/v1/analyses", {"kind": "task_vector_cosines", "base_model": "base", "models": ["model-0", "model-1"]}
    )

    assert job["state"] == "succeeded", job["problem"]
    cosines = job["result"]["data"]["cosines"]
    assert cosines[0][0] == pytest.approx(1)
    assert cosines[0][1] == cosines[1][0]
    report = house.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    assert report["kind"] == "report"
    assert [file["path"] for file in report["files"]] == ["figure.png", "figure.svg", "report.json"]
    assert "tensors" not in job["result"]["data"]  # too large for a job's result
    types = {"figure.png": "image/png", "figure.svg": "image/svg+xml", "report.json": "application/json"}
    for path, media_type in types.items():
        shown = house.get(f"/v1/artifacts/{report['id']}/files/{path}")
        assert shown.headers["content-type"] == media_type
        assert shown.headers["content-security-policy"].startswith("sandbox")  # an SVG could hold a script


def test_the_kinds_of_analyses_are_listed_with_their_schemas(house: House) -> None:
    names = [card["name"] for card in house.read("/v1/analyses/kinds?limit=200")["items"]]
    assert names == sorted(names)
    assert "spectrum" in names
    card = house.read("/v1/analyses/kinds/spectrum")
    assert card["parameters"]["properties"]["energy"]["default"] == 0.9
    assert "effective_ranks" in card["data"]["properties"]
    assert house.get("/v1/analyses/kinds/spectra").status_code == 404


DISTANCE: Document = {"kind": "feature_distance", "tasks": ["kind", "other"]}
COSINES: Document = {"kind": "task_vector_cosines"}
COEFFICIENTS = "/parameters/merge/parameters/coefficients"


def given(*coefficients: float) -> Document:
    """Return a merge with what an earlier one learned."""
    return {"method": "adamerging", "parameters": {"coefficients": {"*": list(coefficients)}}}


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"kind": "sign_conflicts"}, "unknown_analysis", "/kind"),
        ({"models": ["bert"]}, "validation_failed", "/models"),
        ({"tasks": ["kind"]}, "validation_failed", "/tasks"),
        ({"parameters": {"densty": 0.2}}, "invalid_parameters", "/parameters/densty"),
        ({"parameters": {"density": 0.0}}, "invalid_parameters", "/parameters/density"),
        ({"kind": "loss_landscape"}, "validation_failed", "/tasks"),
        ({"kind": "loss_landscape", "tasks": ["nothing"]}, "task_not_found", "/tasks/0"),
        ({"kind": "task_trend", "tasks": ["kind"]}, "validation_failed", "/tasks"),
        (
            {"kind": "task_trend", "tasks": ["kind", "other"], "parameters": {"merge": {"method": "tise"}}},
            "unknown_method",
            "/parameters/merge/method",
        ),
        (
            {"kind": "task_trend", "tasks": ["kind", "other"], "parameters": {"merge": {"method": "fisher"}}},
            "invalid_parameters",
            "/parameters/merge/method",
        ),
        ({"kind": "task_trend", "tasks": ["kind", "other"], "merged": "bert"}, "validation_failed", "/merged"),
        (
            {**COSINES, "parameters": {"transforms": [{"name": "adw"}]}},
            "validation_failed",
            "/parameters/transforms/0/name",
        ),
        (
            {**COSINES, "parameters": {"transforms": [{"name": "awd", "parameters": {"step": 3}}]}},
            "invalid_parameters",
            "/parameters/transforms/0/parameters/step",
        ),
        (
            {**COSINES, "parameters": {"transforms": [{"name": "awd", "version": 99}]}},
            "invalid_parameters",
            "/parameters/transforms/0/version",
        ),
        (
            {**DISTANCE, "merged": "bert", "parameters": {"merge": {"method": "ties"}}},
            "validation_failed",
            "/parameters/merge",
        ),
        ({**DISTANCE, "merged": "nothing"}, "checkpoint_not_found", "/merged"),
        ({**DISTANCE, "parameters": {"merge": given(0.3)}}, "invalid_parameters", f"{COEFFICIENTS}/*"),
        (
            {"kind": "task_trend", "tasks": ["kind", "other"], "parameters": {"merge": given(0.3, 0.4)}},
            "invalid_parameters",
            COEFFICIENTS,
        ),
        (
            {"kind": "incremental_curve", "tasks": ["kind", "other"], "parameters": {"merge": given(0.3, 0.4)}},
            "invalid_parameters",
            COEFFICIENTS,
        ),
    ],
)
def test_a_faulty_analysis_is_refused_with_the_place(house: House, changes: Document, code: str, pointer: str) -> None:
    house.bert()
    for name in ("kind", "other"):
        house.made("/v1/tasks", house.task_body(name))
    body = {"kind": "sign_conflict", "base_model": "bert", "models": ["bert", "bert"], **changes}

    problem = refused(house, "/v1/analyses", body, 422, code)

    assert problem["errors"][0]["pointer"] == pointer


def test_an_analysis_on_tasks_merges_in_memory_and_measures(house: House) -> None:
    house.bert("root")
    house.bert("expert", seed=3, base_checkpoint="root")
    for name in ("kind", "other"):
        house.made("/v1/tasks", house.task_body(name))
    body = {"kind": "negation", "base_model": "root", "models": ["expert"], "tasks": ["kind", "other"]}

    job = house.finish("/v1/analyses", {**body, "parameters": {"coefficients": [1.0]}})

    assert job["state"] == "succeeded", job["problem"]
    assert job["resource_class"] == "gpu"
    data = job["result"]["data"]
    assert [one["coefficient"] for one in data["validation"]] == [0.0, 1.0]
    assert [task["name"] for task in data["tasks"]] == ["kind", "other"]
    house.finish("/v1/evaluations", {"checkpoint": "root", "tasks": ["kind"]})
    assert data["base"]["target"] == value(house, "root", "kind")


@pytest.fixture
def merged(house: House) -> Document:
    """Two experts and their tasks; the body of an analysis of them."""
    house.bert("root")
    for seed, name in enumerate(("kind", "other"), start=1):
        house.bert(f"of-{name}", seed=seed, base_checkpoint="root")
        house.made("/v1/tasks", house.task_body(name))
    return {**DISTANCE, "base_model": "root", "models": ["of-kind", "of-other"]}


def merge_experts(house: House, method: str, parameters: Document) -> None:
    models = [{"checkpoint": f"of-{name}", "task": name} for name in ("kind", "other")]
    body = {"method": method, "base_model": "root", "models": models, "parameters": parameters}
    job = house.finish("/v1/merges", {**body, "output": {"name": "merged"}})
    assert job["state"] == "succeeded", job["problem"]


def test_a_merge_that_is_there_is_looked_at_as_one_that_is_made(house: House, merged: Document) -> None:
    parameters = {"density": 0.5}
    merge_experts(house, "ties", parameters)

    there = house.finish("/v1/analyses", {**merged, "merged": "merged"})
    asked = {"merge": {"method": "ties", "parameters": parameters}}
    made = house.finish("/v1/analyses", {**merged, "parameters": asked})

    assert there["state"] == "succeeded", there["problem"]
    data = there["result"]["data"]
    assert data["distances"] == made["result"]["data"]["distances"]
    assert data["merged"] == house.read("/v1/checkpoints/merged")["content_digest"]
    assert "merge" not in data["parameters"]
    assert made["result"]["data"]["merged"] is None


def test_of_a_multitask_merge_each_task_s_model_is_looked_at(house: House, merged: Document) -> None:
    merge_experts(house, "peru_fft", {"density": 1.0})  # nothing is pruned: each task's model is its own

    job = house.finish("/v1/analyses", {**merged, "merged": "merged"})
    strange = refused(
        house,
        "/v1/analyses",
        {**merged, "models": ["of-kind"], "tasks": [house.made("/v1/tasks", house.task_body("third"))["name"]],
         "merged": "merged"},
        422,
        "validation_failed",
    )  # fmt: skip

    assert job["state"] == "succeeded", job["problem"]
    assert [one["merged"]["l1"] for one in job["result"]["data"]["distances"]] == [0.0, 0.0]
    assert all(one["base"]["l1"] > 0 for one in job["result"]["data"]["distances"])
    assert strange["errors"][0]["pointer"] == "/tasks/0"


def test_a_merged_adapter_is_looked_at_on_its_base(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    train_adapter(house, "adapter")
    body = {"kind": "feature_distance", "base_model": "bert", "models": ["adapter"], "tasks": ["kind"]}

    job = house.finish("/v1/analyses", {**body, "merged": "adapter"})

    assert job["state"] == "succeeded", job["problem"]
    (distance,) = job["result"]["data"]["distances"]
    assert distance["merged"]["l1"] == pytest.approx(0.0, abs=1e-6)
    assert distance["base"]["l1"] > 0


def test_coefficients_that_fit_the_models_need_no_learning(house: House, merged: Document) -> None:
    job = house.finish("/v1/analyses", {**merged, "parameters": {"merge": given(0.3, 0.4)}})

    assert job["state"] == "succeeded", job["problem"]


def test_what_is_tuned_on_validation_needs_that_split(house: House) -> None:
    house.bert()
    for name in ("kind", "other"):
        body = house.task_body(name)
        house.made("/v1/tasks", {**body, "dataset": {"test": body["dataset"]["test"]}})
    body = {"kind": "negation", "base_model": "bert", "models": ["bert"], "tasks": ["kind", "other"]}

    problem = refused(house, "/v1/analyses", body, 422, "validation_failed")

    assert "has no validation split" in problem["errors"][0]["message"]


def test_an_analysis_of_other_tensors_is_refused(house: House) -> None:
    house.register("base", draw(0))
    house.register("other", draw(0, {"bias": (4,), "weight": (4, 3)}))
    body = {"kind": "task_vector_cosines", "base_model": "base", "models": ["other"]}

    problem = refused(house, "/v1/analyses", body, 422, "incompatible_checkpoints")

    assert problem["errors"][0]["pointer"] == "/models/0"
    assert "bias" in problem["errors"][0]["message"]


def compared(house: House, **query: object) -> Document:
    return house.read("/v1/comparisons", params={"checkpoints": "root,expert", "tasks": "kind,other", **query})


@pytest.fixture
def measured(any_house: House) -> House:
    """`root` measured on both tasks, `expert` (of task `kind`) on `kind` alone."""
    house = any_house
    house.bert("root")
    house.bert("expert", seed=3, base_checkpoint="root", task="kind")
    house.made("/v1/tasks", house.task_body())
    house.made("/v1/tasks", house.task_body("other"))
    house.finish("/v1/evaluations", {"checkpoint": "root", "tasks": ["kind", "other"]})
    house.finish("/v1/evaluations", {"checkpoint": "expert", "tasks": ["kind"]})
    return house


def value(house: House, checkpoint: str, task: str) -> float:
    (metric,) = house.read(f"/v1/metrics?checkpoint={checkpoint}&task={task}&split=test")["items"]
    return float(metric["value"])


def test_a_comparison_has_a_row_per_checkpoint_and_null_for_what_was_not_measured(measured: House) -> None:
    table = compared(measured)

    root, expert = table["rows"]
    assert (table["metric"], table["split"], table["tasks"]) == ("accuracy", "test", ["kind", "other"])
    assert root["ref"] == "root"
    assert root["values"]["kind"]["value"] == value(measured, "root", "kind")
    assert root["values"]["kind"]["n"] == 6
    assert root["average"] == pytest.approx((value(measured, "root", "kind") + value(measured, "root", "other")) / 2)
    assert expert["values"]["other"] is None
    assert expert["average"] is None


def test_values_are_normalized_by_the_individual_model(measured: House) -> None:
    table = compared(measured)

    root, expert = table["rows"]
    assert table["individual"] == {"kind": expert["checkpoint"], "other": None}
    assert expert["values"]["kind"]["normalized"] == 1.0
    ratio = value(measured, "root", "kind") / value(measured, "expert", "kind")
    assert root["values"]["kind"]["normalized"] == pytest.approx(ratio)
    assert root["values"]["other"]["normalized"] is None
    assert root["normalized_average"] is None


def test_where_lower_is_better_the_ratio_is_turned_round(house: House) -> None:
    for seed, name in enumerate(("root", "expert")):
        house.register_folder(name, tiny_language.make_gpt2(house.data / name, seed=seed))
    file = tiny_bert.write_rows(house.data / "test.jsonl", [{"text": "red is a"}, {"text": "the cat runs"}])
    preprocessing = {"max_tokens": 8, "stride": 4}
    house.made(
        "/v1/tasks",
        {"name": "kind", "kind": "perplexity", "dataset": {"test": file.as_uri()}, "preprocessing": preprocessing},
    )
    found = {
        name: house.finish("/v1/evaluations", {"checkpoint": name, "tasks": ["kind"]})["result"]["metrics"][0]
        for name in ("root", "expert")
    }

    table = house.read("/v1/comparisons?checkpoints=root&tasks=kind&metric=perplexity&individual=kind:expert")

    assert table["higher_is_better"] is False
    cell = table["rows"][0]["values"]["kind"]
    assert cell["value"] == found["root"]["value"]
    assert cell["normalized"] == pytest.approx(found["expert"]["value"] / found["root"]["value"])


def test_the_individual_model_can_be_named(measured: House) -> None:
    table = compared(measured, individual="kind:root,other:root")

    root = table["rows"][0]
    assert root["normalized_average"] == 1.0


def test_a_cell_has_the_interval_of_its_metric(measured: House) -> None:
    (metric,) = measured.read("/v1/metrics?checkpoint=root&task=kind")["items"]

    cell = compared(measured)["rows"][0]["values"]["kind"]

    assert metric["interval"]["low"] <= metric["value"] <= metric["interval"]["high"]
    assert (cell["interval"], cell["stderr"]) == (metric["interval"], metric["stderr"])


def test_the_newest_measurement_counts(measured: House) -> None:
    job = measured.finish("/v1/evaluations", {"checkpoint": "expert", "tasks": ["kind"]})

    assert compared(measured)["rows"][1]["values"]["kind"]["job"] == job["id"]


def test_cosines_come_from_stored_analyses(measured: House) -> None:
    assert compared(measured, cosines="true")["cosines"] == [[None, None], [None, None]]
    assert compared(measured)["cosines"] is None
    measured.bert("third", seed=4, base_checkpoint="root")
    models = ["expert", "third"]
    job = measured.finish("/v1/analyses", {"kind": "task_vector_cosines", "base_model": "root", "models": models})

    table = measured.read("/v1/comparisons?checkpoints=third,root,expert&tasks=kind&cosines=true")

    cosine = job["result"]["data"]["cosines"][0][1]
    assert table["cosines"][0][2] == table["cosines"][2][0] == cosine
    assert table["cosines"][1] == [None, None, None]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"checkpoints": "root,nothing"}, "checkpoint_not_found"),
        ({"tasks": "nothing"}, "task_not_found"),
        ({"checkpoints": "root,,expert"}, "validation_failed"),
        ({"checkpoints": "root,root"}, "validation_failed"),
        ({"individual": "kind"}, "validation_failed"),
        ({"individual": "elsewhere:root"}, "validation_failed"),
        ({"split": "dev"}, "validation_failed"),
    ],
)
def test_a_faulty_comparison_is_refused(measured: House, query: Document, code: str) -> None:
    response = measured.get("/v1/comparisons", params={"checkpoints": "root,expert", "tasks": "kind", **query})

    assert (response.status_code, response.json()["code"]) == (422, code)
