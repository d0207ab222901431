"""Merges that look at data over HTTP: which task, which split, what is refused, and that recipes replay."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.app.api.house import Document, House, open_house
from tests.workers import tiny_language

PARAMETERS = {"steps": 2, "batch_size": 2}
MODELS = [{"checkpoint": "near-0"}, {"checkpoint": "near-1", "task": "other"}]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A base, two models, of which the first says its task, and two tasks; tests add jobs only."""
    with open_house(tmp_path_factory.mktemp("house")) as house:
        _furnish(house)
        yield house


def _furnish(house: House) -> None:
    house.bert()
    house.made("/v1/tasks", house.task_body())
    house.made("/v1/tasks", house.task_body("other"))
    house.bert("near-0", seed=1, base_checkpoint="bert", task="kind")
    house.bert("near-1", seed=2, base_checkpoint="bert")


@pytest.fixture(scope="module")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The same with tasks of texts, and three GPT-2s."""
    with open_house(tmp_path_factory.mktemp("languages")) as house:
        _furnish(house)
        own: Document = {"head": {"kind": "own"}, "preprocessing": {}}
        house.made("/v1/tasks", house.task_body("answers", kind="text2text", **own))
        house.made("/v1/tasks", house.task_body("trivia", kind="lm-eval", classes=[], **own))
        cut = {"preprocessing": {"max_tokens": 8, "stride": 4}}
        house.made("/v1/tasks", house.task_body("prose", kind="perplexity", classes=[], **{**own, **cut}))
        for seed in range(3):
            house.register_folder(f"gpt2-{seed}", tiny_language.make_gpt2(house.data / f"gpt2-{seed}", seed=seed))
        yield house


def body(**changes: Any) -> Document:
    return {"method": "adamerging", "base_model": "bert", "models": MODELS, "parameters": PARAMETERS, **changes}


def test_a_merge_learns_on_the_tasks_of_its_models(shared: House) -> None:
    job = shared.finish("/v1/merges", body(evaluate=["kind"]))

    assert job["state"] == "succeeded", job["problem"]
    assert job["resource_class"] == "gpu"  # it runs models
    learned = job["result"]["data"]["learned"]
    assert [one["task"] for one in learned["tasks"]] == ["kind", "other"]
    assert (learned["split"], learned["transductive"]) == ("validation", False)
    artifact = shared.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")
    assert "coefficients.json" in [file["path"] for file in artifact["files"]]
    digests = [shared.read(f"/v1/tasks/{name}")["digest"] for name in ("kind", "other")]
    assert [one["digest"] for one in artifact["recipe"]["data"]["tasks"]] == digests


def test_an_equal_merge_is_not_run_again_and_another_split_is_another_merge(shared: House) -> None:
    first = shared.finish("/v1/merges", body(seed=1))
    again = shared.made("/v1/merges", body(seed=1, data={"split": "validation"}))
    other = shared.made("/v1/merges", body(seed=1, data={"split": "train"}))

    assert again["deduplicated_from"] == first["id"]
    assert other["state"] == "queued"
    assert other["recipe_digest"] != first["recipe_digest"]


def test_a_recipe_repeats_what_was_learned_on(shared: House) -> None:
    job = shared.finish("/v1/merges", body(seed=2, data={"max_examples": 3}))
    recipe = shared.read(f"/v1/artifacts/{job['result']['artifacts'][0]}")["recipe"]

    again = shared.made("/v1/merges", recipe)

    assert again["recipe_digest"] == job["recipe_digest"]
    assert again["deduplicated_from"] == job["id"]


def test_coefficients_replay_without_data(shared: House) -> None:
    job = shared.finish("/v1/merges", body(seed=3))
    file = shared.read(f"/v1/artifacts/{job['result']['artifacts'][0]}/files/coefficients.json")

    again = shared.finish("/v1/merges", body(parameters={"coefficients": file["coefficients"]}))

    weights = [shared.read(f"/v1/checkpoints/{one['result']['checkpoint']}")["weights_digest"] for one in (job, again)]
    assert weights[0] == weights[1]
    assert again["resource_class"] == "cpu"


def test_the_test_split_makes_a_merge_transductive_and_its_metrics_say_so(shared: House) -> None:
    asked = body(seed=4, data={"split": "test"}, evaluate=["kind", {"task": "kind", "split": "validation"}])
    job = shared.finish("/v1/merges", asked)

    assert job["result"]["data"]["learned"]["transductive"] is True
    metrics = shared.read(f"/v1/metrics?checkpoint={job['result']['checkpoint']}")["items"]
    assert {one["split"]: one["transductive"] for one in metrics} == {"test": True, "validation": False}


def test_the_same_test_file_under_another_task_is_marked_too(any_house: House) -> None:
    house = any_house
    _furnish(house)
    whole = house.task_body()
    prompts = {"kind": "label_prompts", "prompts": ["green", "bird"]}
    house.made("/v1/tasks", {**whole, "name": "prompted", "head": prompts})
    house.made("/v1/tasks", {**whole, "name": "slower", "preprocessing": {"max_tokens": 8, "batch_size": 1}})
    house.made("/v1/tasks", {**whole, "name": "swapped", "dataset": {"test": whole["dataset"]["validation"]}})
    tasks = ["kind", "prompted", "slower", "swapped"]
    asked = body(data={"split": "test"}, output={"name": "seen"}, evaluate=tasks)
    assert house.finish("/v1/merges", asked)["state"] == "succeeded"
    house.finish("/v1/merges", body(output={"name": "tuned"}, evaluate=tasks))

    def marks(name: str) -> dict[str, bool]:
        return {row["task"]: row["transductive"] for row in house.read(f"/v1/metrics?checkpoint={name}")["items"]}

    assert marks("seen") == {"kind": True, "prompted": True, "slower": True, "swapped": False}
    assert marks("tuned") == {"kind": False, "prompted": False, "slower": False, "swapped": True}


def test_an_alias_says_what_stands_before_the_method(shared: House) -> None:
    job = shared.made("/v1/merges", body(method="awd_adamerging"))
    given = [{"name": "awd", "parameters": {"scope": "tensor"}}]
    other = shared.made("/v1/merges", body(method="awd_adamerging", transforms=given))

    assert (job["spec"]["method"], [step["name"] for step in job["spec"]["transforms"]]) == ("adamerging", ["awd"])
    assert [step["parameters"] for step in other["spec"]["transforms"]] == [{"scope": "tensor"}]
    shared.work()


def test_a_task_is_not_deleted_while_a_merge_learns_on_it(tmp_path: Path) -> None:
    with open_house(tmp_path) as house:
        _furnish(house)
        house.made("/v1/merges", body())
        assert house.client.delete("/v1/tasks/other").status_code == 409
        house.work()
        assert house.client.delete("/v1/tasks/other").status_code == 204


def test_a_plan_tells_what_learning_takes(shared: House) -> None:
    plan = shared.made("/v1/plans", body(seed=9))
    plain = shared.made("/v1/plans", body(method="task_arithmetic", parameters={}))

    assert plan["is_runnable"]
    assert plan["peak_memory_bytes"] > 0
    assert plan["recipe_digest"] != plain["recipe_digest"]


@pytest.mark.parametrize(
    ("changes", "code", "pointer"),
    [
        ({"models": [{"checkpoint": "near-0"}, {"checkpoint": "near-1"}]}, "validation_failed", "/models/1/task"),
        ({"models": [{"checkpoint": "near-0", "task": "knd"}]}, "task_not_found", "/models/0/task"),
        ({"data": {"tasks": ["kind"]}}, "validation_failed", "/data/tasks"),
        ({"data": {"tasks": ["kind", "knd"]}}, "task_not_found", "/data/tasks/1"),
        ({"data": {"split": "dev"}}, "validation_failed", "/data/split"),
        ({"data": {"max_examples": 0}}, "validation_failed", "/data/max_examples"),
        ({"method": "task_arithmetic", "parameters": {}, "data": {}}, "validation_failed", "/data"),
        ({"parameters": {"coefficients": {"*": [1, 1]}}, "data": {}}, "validation_failed", "/data"),
        ({"parameters": {"coefficients": {"*": [1]}}}, "invalid_parameters", "/parameters/coefficients/*"),
        ({"parameters": {"coefficients": {"x": [1, 1]}}}, "invalid_parameters", "/parameters/coefficients/x"),
        ({"overrides": [{"match": "*", "parameters": {"clamp": False}}]}, "validation_failed", "/overrides"),
        (
            {"parameters": {"initial_coefficient": [0.1, 0.2]}},
            "validation_failed",
            "/parameters/initial_coefficient",
        ),
    ],
)
@pytest.mark.parametrize("path", ["/v1/merges", "/v1/plans"])
def test_what_cannot_be_learned_is_refused_with_its_place(
    shared: House, path: str, changes: Document, code: str, pointer: str
) -> None:
    response = shared.post(path, body(**changes))
    problem = response.json()
    if path == "/v1/plans" and response.status_code == 200:  # what the tensors decide is a problem in the answer
        (problem,) = problem["problems"]
    else:
        assert response.status_code == 422, response.text
    assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer)


@pytest.mark.parametrize(
    ("method", "parameters", "why"),
    [
        ("adamerging", {}, "adamerging minimizes the entropy of predictions over classes"),
        ("awd_adamerging", {}, "adamerging minimizes the entropy of predictions over classes"),
        ("surgery", {}, "surgery corrects the features that a head of classes sees"),
        ("surgery_v2", {}, "surgery_v2 leaves modules that evaluations of classification alone run with"),
        (
            "fisher",
            {},
            "fisher sums over all classes with labels 'expected' (with 'sampled' or 'given' it takes texts)",
        ),
        ("greedy_soup", {}, "greedy_soup counts what is right with metric 'accuracy' (with 'loss' it takes texts)"),
    ],
)
def test_what_needs_classes_is_refused_on_tasks_of_texts(
    languages: House, method: str, parameters: Document, why: str
) -> None:
    for kind, task in (("text2text", "answers"), ("perplexity", "prose")):
        asked = body(method=method, parameters=parameters, data={"tasks": ["kind", task]})

        response = languages.post("/v1/merges", asked)

        problem = response.json()
        assert (response.status_code, problem["errors"][0]["pointer"]) == (422, "/data/tasks/1")
        assert problem["errors"][0]["message"] == (
            f"task {task!r} is of kind {kind}, whose models give no probabilities of classes, and {why}; "
            "name tasks of kind image-classification, text-classification"
        )


@pytest.mark.parametrize("labels", [["given", "expected"], ["expected", "given"]])
def test_points_of_a_sweep_that_need_classes_are_refused_in_any_order(languages: House, labels: list[str]) -> None:
    merge = body(method="fisher", parameters={}, data={"tasks": ["kind", "answers"]}, evaluate=["kind"])

    problem = languages.post("/v1/sweeps", {"merge": merge, "grid": {"labels": labels}}).json()

    assert problem["status"] == 422
    assert "whose models give no probabilities of classes, and fisher sums over all classes" in problem["detail"]


def warnings_of(house: House, job: Document) -> list[str]:
    events = house.read(f"/v1/jobs/{job['id']}/events")["items"]
    return [event["data"]["message"] for event in events if event["type"] == "job.warning"]


def test_a_sweep_that_learns_on_what_it_is_chosen_by_says_so_when_it_is_accepted(shared: House) -> None:
    swept: Document = {"grid": {"non_diagonal_scale": [0.1, 0.9]}}
    merge = body(method="regmean", parameters={}, evaluate=["kind"])

    careless = shared.made("/v1/sweeps", {**swept, "merge": merge})
    careful = shared.made("/v1/sweeps", {**swept, "merge": {**merge, "data": {"split": "train"}}})
    plain = shared.made(
        "/v1/sweeps", {"merge": body(method="ties", parameters={}, evaluate=["kind"]), "grid": {"density": [0.1]}}
    )

    (warning,) = warnings_of(shared, careless)
    assert "learns on examples that points are chosen by (validation of kind)" in warning
    assert "such as train" in warning
    assert warnings_of(shared, careful) == warnings_of(shared, plain) == []
    shared.work()
    assert [shared.read(f"/v1/jobs/{job['id']}")["state"] for job in (careless, careful)] == ["succeeded"] * 2


def test_tasks_that_nothing_is_learned_on_are_refused(languages: House) -> None:
    problem = languages.post(
        "/v1/merges", body(method="regmean", parameters={}, data={"tasks": ["kind", "trivia"]})
    ).json()

    assert problem["errors"][0]["message"] == (
        "task 'trivia' is of kind lm-eval; name tasks of kind image-classification, perplexity, text-classification, "
        "text2text"
    )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("fisher", {"labels": "sampled"}),
        ("regmean", {}),
        ("regmean_plus_plus", {}),
        ("localize_and_stitch", {"steps": 1}),
        ("greedy_soup", {"metric": "loss"}),
    ],
)
def test_a_merge_of_language_models_learns_on_their_texts(languages: House, method: str, parameters: Document) -> None:
    models = [{"checkpoint": f"gpt2-{seed}"} for seed in (1, 2)]
    data = {"tasks": ["prose", "prose"], "split": "validation"}
    asked = {"method": method, "base_model": "gpt2-0", "models": models, "parameters": parameters, "data": data}

    job = languages.finish("/v1/merges", {**asked, "evaluate": ["prose"]})

    assert job["state"] == "succeeded", job["problem"]
    assert [one["n_examples"] for one in job["result"]["data"]["learned"]["tasks"]] == [6, 6]


def test_an_analysis_of_logits_is_refused_on_tasks_of_texts(languages: House) -> None:
    asked = {"kind": "disentanglement_error", "base_model": "gpt2-0", "models": ["gpt2-1", "gpt2-2"],
             "tasks": ["prose", "answers"]}  # fmt: skip

    problem = languages.post("/v1/analyses", asked).json()

    assert (
        problem["errors"][0]["message"]
        == "task 'prose' is of kind 'perplexity', whose models give no logits of classes"
    )


def test_a_split_that_a_task_has_not_is_refused(shared: House) -> None:
    whole = shared.task_body("short")
    test_only = {"test": whole["dataset"]["test"]}
    shared.made("/v1/tasks", {**whole, "dataset": test_only})

    problem = shared.post("/v1/merges", body(data={"tasks": ["kind", "short"]})).json()

    assert problem["errors"][0]["pointer"] == "/data/tasks/1"
    assert "has no validation split; it has test" in problem["detail"]


# --- statistics of earlier merges ---------------------------------------------------------------------------------


def statistics_body(**changes: Any) -> Document:
    return {"method": "fisher", "models": MODELS, "base_model": "bert", **changes}


def test_statistics_of_merges_of_one_model_each_serve_a_merge_of_both(shared: House) -> None:
    whole = shared.finish("/v1/merges", statistics_body())
    for index, model in enumerate(MODELS):
        shared.finish("/v1/merges", statistics_body(models=[model], output={"name": f"alone-{index}"}))

    again = shared.finish("/v1/merges", statistics_body(statistics=["alone-0", "alone-1"]))

    assert again["state"] == "succeeded", again["problem"]
    assert again["resource_class"] == "cpu"  # it runs no model
    weights = [
        shared.read(f"/v1/checkpoints/{one['result']['checkpoint']}")["weights_digest"] for one in (whole, again)
    ]
    assert weights[0] == weights[1]
    artifact = shared.read(f"/v1/artifacts/{whole['result']['artifacts'][0]}")
    assert len([file for file in artifact["files"] if file["path"].startswith("statistics/fisher-")]) == 2
    recipe = shared.read(f"/v1/artifacts/{again['result']['artifacts'][0]}")["recipe"]
    assert recipe["data"] is None
    assert shared.made("/v1/merges", recipe)["deduplicated_from"] == again["id"]


def test_what_was_measured_on_test_stays_transductive(shared: House) -> None:
    seen = {"split": "test"}
    shared.finish("/v1/merges", statistics_body(seed=5, data=seen, output={"name": "on-test"}))

    job = shared.finish("/v1/merges", statistics_body(seed=5, statistics=["on-test"], evaluate=["kind"]))

    (metric,) = shared.read(f"/v1/metrics?checkpoint={job['result']['checkpoint']}")["items"]
    assert (metric["split"], metric["transductive"]) == ("test", True)


def test_a_merge_of_what_had_looked_at_test_is_transductive_too(shared: House) -> None:
    shared.finish("/v1/merges", body(seed=6, data={"split": "test"}, output={"name": "seen"}))
    models = [{"checkpoint": "near-0"}, {"checkpoint": "seen"}]
    shared.finish("/v1/merges", {"method": "average", "models": models, "output": {"name": "of-seen"}})
    again = [{"checkpoint": "near-1"}, {"checkpoint": "of-seen"}]
    asked = {"method": "average", "models": again, "output": {"name": "later"}, "evaluate": ["kind"]}
    job = shared.finish("/v1/merges", asked)
    shared.finish("/v1/evaluations", {"checkpoint": "near-0", "tasks": ["kind"]})

    (metric,) = shared.read(f"/v1/metrics?checkpoint={job['result']['checkpoint']}")["items"]
    table = shared.read("/v1/comparisons?checkpoints=later,near-0&tasks=kind")
    cells = [row["values"]["kind"] for row in table["rows"]]

    assert metric["transductive"] is True
    assert [cell["transductive"] for cell in cells] == [True, False]
    assert all(cell["interval"]["low"] <= cell["value"] <= cell["interval"]["high"] for cell in cells)


@pytest.mark.parametrize(
    ("changes", "pointer", "message"),
    [
        ({"statistics": ["only-first"]}, "/models/1/checkpoint", "found no statistics/fisher-"),
        ({"statistics": ["only-first"], "data": {}}, "/data", "learns nothing where statistics is given"),
        ({"statistics": ["only-first"], "method": "regmean"}, "/models/0/checkpoint", "found no statistics/gram-"),
        ({"statistics": ["only-first"], "method": "average"}, "/statistics", "takes no statistics"),
        ({"statistics": ["nothing"]}, "/statistics/0", "nothing"),
        ({"method": "greedy_soup"}, "/data/tasks", "tries merges on tasks; name them"),
    ],
)
def test_statistics_that_do_not_serve_are_refused_with_their_place(
    shared: House, changes: Document, pointer: str, message: str
) -> None:
    if not shared.get("/v1/checkpoints/only-first").is_success:
        shared.finish("/v1/merges", statistics_body(models=MODELS[:1], output={"name": "only-first"}))

    problem = shared.post("/v1/merges", statistics_body(**changes)).json()

    assert problem["errors"][0]["pointer"] == pointer
    assert message in problem["errors"][0]["message"]
