"""Sweeps over HTTP: what is refused, what comes of them, and that a second attempt goes on where the first ended."""

from copy import deepcopy
from typing import Any

import pytest
from pydantic import JsonValue

from app.domain.sweeps import POINT_EVENT
from app.domain.work import SweepWork
from app.services import running
from app.services.sweeps import steps
from tests.app.api.house import Document, House

MERGE: Document = {
    "method": "task_arithmetic",
    "base_model": "bert",
    "models": [{"checkpoint": "first"}, {"checkpoint": "second"}],
    "evaluate": ["kind"],
}
GRID: Document = {"merge": MERGE, "grid": {"scaling_coefficient": [0.0, 0.5, 1.0]}}
SEARCH: Document = {"parameters": {"density": {"low": 0.0, "high": 1.0}}, "n_trials": 3}
TIES: Document = {**MERGE, "method": "ties"}
COPIES: Document = {"method": "passthrough", "models": MERGE["models"], "evaluate": ["kind"]}


@pytest.fixture
def sweeping(house: House) -> House:
    house.bert()
    for seed, name in enumerate(("first", "second"), start=1):
        house.bert(name, seed=seed, base_checkpoint="bert")
    house.made("/v1/tasks", house.task_body())
    return house


def changed(body: Document, **merge: Any) -> Document:
    return {**deepcopy(body), "merge": {**body["merge"], **merge}}


def test_the_best_point_becomes_a_checkpoint_like_any_merge(sweeping: House) -> None:
    job = sweeping.finish("/v1/sweeps", changed(GRID, output={"name": "swept", "tags": {"a": "b"}}))

    assert (job["kind"], job["state"], job["problem"]) == ("sweep", "succeeded", None)
    result = job["result"]
    best = result["data"]["best"]
    swept = sweeping.read("/v1/checkpoints/swept")
    assert (swept["id"], swept["tags"]) == (result["checkpoint"], {"a": "b"})
    assert [metric["split"] for metric in result["metrics"]] == ["validation"]
    assert result["metrics"][0]["value"] == best["mean"] == max(point["mean"] for point in result["data"]["points"])
    (evaluation,) = result["evaluations"]
    assert job["children"] == [evaluation]
    assert sweeping.read(f"/v1/jobs/{evaluation}")["result"]["metrics"][0]["split"] == "test"
    plain = sweeping.finish("/v1/merges", {**MERGE, "parameters": best["parameters"]})
    artifacts = [sweeping.read(f"/v1/artifacts/{found['result']['artifacts'][0]}") for found in (job, plain)]
    assert artifacts[0]["files"] == artifacts[1]["files"]
    assert plain["result"]["checkpoint"] != swept["id"]
    assert sweeping.read(f"/v1/jobs/{job['id']}/recipe") == sweeping.read(f"/v1/jobs/{plain['id']}/recipe")


def test_every_number_of_what_a_sweep_chose_says_so(sweeping: House) -> None:
    swept = sweeping.finish("/v1/sweeps", changed(GRID, output={"name": "swept"}))
    sweeping.finish("/v1/merges", {
        "method": "average", "models": [{"checkpoint": "swept"}, {"checkpoint": "first"}],
        "output": {"name": "later"}, "evaluate": ["kind"],
    })  # fmt: skip
    sweeping.finish("/v1/evaluations", {"checkpoint": "first", "tasks": ["kind"]})

    expected = {"job": swept["id"], "split": "validation", "metric": "accuracy", "tasks": ["kind"], "n_points": 3}
    assert [one["tuned_on"] for one in swept["result"]["metrics"]] == [[expected]]
    rows = {name: sweeping.read(f"/v1/metrics?checkpoint={name}")["items"] for name in ("swept", "later", "first")}
    assert {row["split"]: row["tuned_on"] for row in rows["swept"]} == {"validation": [expected], "test": [expected]}
    assert [row["tuned_on"] for row in rows["later"]] == [[expected]]  # a merge of the result is tuned, too
    assert [row["tuned_on"] for row in rows["first"]] == [[]]
    assert not any(row["transductive"] for found in rows.values() for row in found)
    (cell,) = sweeping.read("/v1/comparisons?checkpoints=swept&tasks=kind")["rows"][0]["values"].values()
    assert cell["tuned_on"] == [expected]


def test_a_search_tells_how_many_points_it_compared(sweeping: House) -> None:
    pytest.importorskip("optuna")
    job = sweeping.finish("/v1/sweeps", {**SEARCHED, "search": {**SEARCHED["search"], "n_trials": 2}})

    assert [one["tuned_on"][0]["n_points"] for one in job["result"]["metrics"]] == [2]


def test_test_inputs_that_a_sweep_chose_by_under_another_task_are_marked(sweeping: House) -> None:
    body = sweeping.task_body()
    chosen_by = {"validation": body["dataset"]["validation"]}
    sweeping.made("/v1/tasks", {**body, "name": "choosing", "dataset": chosen_by})
    sweeping.made("/v1/tasks", {**body, "name": "measured", "dataset": {"test": body["dataset"]["validation"]}})
    merge = {"output": {"name": "swept"}, "evaluate": ["measured", "kind"]}

    sweeping.finish("/v1/sweeps", changed(GRID, **merge) | {"select_on": {"tasks": ["choosing"]}})

    found = sweeping.read("/v1/metrics?checkpoint=swept&split=test")["items"]
    assert {row["task"]: row["transductive"] for row in found} == {"measured": True, "kind": False}


def test_the_curve_is_a_report(sweeping: House) -> None:
    job = sweeping.finish("/v1/sweeps", GRID)

    report = sweeping.read(f"/v1/artifacts/{job['result']['artifacts'][1]}")
    assert report["kind"] == "report"
    assert [file["path"] for file in report["files"]] == ["sweep.json", "sweep.png", "sweep.svg"]
    data = sweeping.read(f"/v1/artifacts/{report['id']}/files/sweep.json")
    assert [point["parameters"]["scaling_coefficient"] for point in data["points"]] == [0.0, 0.5, 1.0]
    assert all(point["tasks"]["kind"]["n"] == 6 for point in data["points"])


def test_a_second_attempt_knows_what_the_first_has_measured(sweeping: House) -> None:
    job = sweeping.made("/v1/sweeps", GRID)
    sessions = sweeping.wiring.sessions
    claim = running.claim(sessions, sweeping.worker, lease_seconds=600)
    assert claim is not None
    point: dict[str, JsonValue] = {"index": 0, "parameters": {"scaling_coefficient": 0.0}, "problem": "it was tried"}
    running.heartbeat(sessions, claim, told=[(POINT_EVENT, point)])
    running.release(sessions, claim, "its worker was stopped")

    again = running.claim(sessions, sweeping.worker, lease_seconds=600)
    assert again is not None
    work = steps.prepare(sweeping.keepers, again, sweeping.folder)

    assert isinstance(work, SweepWork)
    assert [point.problem for point in work.measured] == ["it was tried"]
    events = sweeping.read(f"/v1/jobs/{job['id']}/events")["items"]
    assert [event["data"]["parameters"] for event in events if event["type"] == POINT_EVENT] == [point["parameters"]]


SEARCHED: Document = {
    "merge": {**MERGE, "method": "ties"},
    "search": {
        "parameters": {
            "density": {"low": 0.1, "high": 1.0, "log": True},
            "vote": {"choices": ["unweighted", "weighted"]},
        },
        "n_trials": 12,  # two beyond those that are drawn at random
        "seed": 5,
    },
}


def test_a_search_finds_the_same_again_and_goes_on_where_it_was_interrupted(sweeping: House) -> None:
    pytest.importorskip("optuna")
    whole = sweeping.finish("/v1/sweeps", SEARCHED)
    assert whole["state"] == "succeeded", whole["problem"]
    told = points_told(sweeping, whole)
    again = sweeping.made("/v1/sweeps", SEARCHED)
    sessions = sweeping.wiring.sessions
    claim = running.claim(sessions, sweeping.worker, lease_seconds=600)
    assert claim is not None
    running.heartbeat(sessions, claim, told=[(POINT_EVENT, point) for point in told[:11]])
    running.release(sessions, claim, "its worker was stopped")

    sweeping.work()

    resumed = sweeping.read(f"/v1/jobs/{again['id']}")
    assert resumed["state"] == "succeeded", resumed["problem"]
    assert resumed["result"]["data"] == whole["result"]["data"]
    assert points_told(sweeping, resumed) == told
    reports = [sweeping.read(f"/v1/artifacts/{job['result']['artifacts'][1]}")["files"] for job in (whole, resumed)]
    assert reports[0] == reports[1]
    data = whole["result"]["data"]
    assert (data["kind"], data["n_points"], data["n_failed"]) == ("search", 12, 0)
    assert all(0.1 <= point["parameters"]["density"] <= 1.0 for point in data["points"])
    assert data["best"]["mean"] == max(point["mean"] for point in data["points"])


def test_another_seed_searches_elsewhere(sweeping: House) -> None:
    pytest.importorskip("optuna")
    found = [
        sweeping.finish("/v1/sweeps", {**SEARCHED, "search": {**SEARCHED["search"], "n_trials": 2, "seed": seed}})
        for seed in (0, 1)
    ]

    first, second = (job["result"]["data"]["points"] for job in found)
    assert [point["parameters"] for point in first] != [point["parameters"] for point in second]


def points_told(sweeping: House, job: Document) -> list[Document]:
    """Return the points in a job's log."""
    events = sweeping.read(f"/v1/jobs/{job['id']}/events?limit=200")["items"]
    return [event["data"] for event in events if event["type"] == POINT_EVENT]


def test_jobs_are_found_by_method_and_task(sweeping: House) -> None:
    job = sweeping.made("/v1/sweeps", GRID)

    for query in ("kind=sweep", "method=task_arithmetic&kind=sweep", "task=kind"):
        assert [found["id"] for found in sweeping.read(f"/v1/jobs?{query}")["items"]] == [job["id"]]


def test_tasks_to_choose_by_need_not_be_those_measured_afterwards(sweeping: House) -> None:
    body = changed(GRID, evaluate=[]) | {"select_on": {"tasks": ["kind"], "split": "train"}}

    job = sweeping.finish("/v1/sweeps", body)

    assert job["result"]["evaluations"] == []
    assert job["result"]["metrics"][0]["split"] == "train"


def test_a_sweep_of_patches_is_measured_with_them(sweeping: House) -> None:
    models = [{"checkpoint": "first", "task": "kind"}, {"checkpoint": "second"}]
    body = changed(GRID, method="peru_fft", models=models) | {"grid": {"density": [0.5, 1.0]}}

    job = sweeping.finish("/v1/sweeps", body)

    assert job["state"] == "succeeded", job["problem"]
    assert sweeping.read(f"/v1/checkpoints/{job['result']['checkpoint']}")["kind"] == "multitask"


def test_values_of_single_models_are_swept(sweeping: House) -> None:
    models = [{"checkpoint": "first"}, {"checkpoint": "second", "parameters": {"density": 0.5}}]
    overrides = [{"match": "*attention*", "weights": [1.0, None], "models": [{"density": 0.5}, None]}]
    swept = {
        "models.0.parameters.density": [0.1, 0.9],
        "overrides.0.weights.1": [0.5],
        "overrides.0.models.0.density": [0.2, 1.0],
    }

    job = sweeping.finish("/v1/sweeps", {"merge": {**TIES, "models": models, "overrides": overrides}, "grid": swept})

    assert job["state"] == "succeeded", job["problem"]
    assert len(job["result"]["data"]["points"]) == 4
    best = job["result"]["data"]["best"]["parameters"]
    recipe = sweeping.read(f"/v1/jobs/{job['id']}/recipe")
    assert recipe["models"][0]["parameters"] == {"density": best["models.0.parameters.density"]}
    (override,) = recipe["overrides"]
    assert override["weights"] == [1.0, 0.5]
    assert override["models"] == [{"density": best["overrides.0.models.0.density"]}, None]


def test_points_are_compared_by_the_metric_that_the_tasks_have_in_common(sweeping: House) -> None:
    for name in ("one", "other"):
        sweeping.made("/v1/tasks", {**sweeping.task_body(), "name": name, "metric": "f1"})

    job = sweeping.finish("/v1/sweeps", changed(GRID, evaluate=["one", "other"]))
    mixed = sweeping.post("/v1/sweeps", changed(GRID, evaluate=["one", "kind"]))

    assert job["state"] == "succeeded", job["problem"]
    assert [metric["name"] for metric in job["result"]["metrics"]] == ["f1", "f1"]
    assert mixed.status_code == 422
    (fault,) = mixed.json()["errors"]
    assert fault["pointer"] == "/select_on/metric"
    assert "found one by f1, kind by accuracy; name tasks of one metric" in fault["message"]


FAULTS: list[tuple[Document, str, str, str]] = [  # changes of a request, code, pointer, words
    ({"grid": {"scaling_coeficient": [1.0]}}, "invalid_parameters", "/grid/scaling_coeficient", "unknown"),
    ({"grid": {"scaling_coefficient": [0.5, "x"]}}, "invalid_parameters", "/grid/scaling_coefficient", "point 1"),
    ({"grid": {"models.7.weight": [0.5]}}, "invalid_parameters", "/grid/models.7.weight", "leads to nothing"),
    ({"grid": {"models.1.weight": [0.5, 1e9]}}, "invalid_parameters", "/grid/models.1.weight", "point 1"),
    ({"grid": {"models.1.weight": ["x"]}}, "invalid_parameters", "/grid/models.1.weight", "number"),
    ({"merge": TIES, "grid": {"models.1.parameters.density": [0.5, 2.0]}},
     "validation_failed", "/grid/models.1.parameters.density", "point 1"),
    ({"grid": {"models.1.parameters.density": [0.5]}},
     "validation_failed", "/grid/models.1.parameters.density", "takes no parameters per model"),
    ({"grid": {"overrides.0.weights": [[1.0, 1.0]]}},
     "invalid_parameters", "/grid/overrides.0.weights", "leads to nothing"),
    ({"grid": {"parameters.scaling_coefficient.x": [0.5]}},
     "invalid_parameters", "/grid/parameters.scaling_coefficient.x", "leads to nothing"),
    ({"merge": TIES, "grid": None, "search": SEARCH},
     "invalid_parameters", "/search/parameters/density", "minimum"),
    ({"merge": {**MERGE, "base_model": "nobody"}}, "checkpoint_not_found", "/merge/base_model", "nobody"),
    ({"merge": {**MERGE, "evaluate": ["nothing"]}}, "task_not_found", "/merge/evaluate/0", "nothing"),
    ({"select_on": {"tasks": ["nothing"]}}, "task_not_found", "/select_on/tasks/0/task", "nothing"),
    ({"select_on": {"metric": "acuracy"}}, "validation_failed", "/select_on/metric", "expected accuracy"),
    ({"select_on": {"split": "test"}}, "validation_failed", "/select_on/split", "too good"),
    ({"search": SEARCH}, "validation_failed", "/", "either a grid or a search"),
    ({"merge": {**MERGE, "evaluate": []}}, "validation_failed", "/", "nothing to choose by"),
    ({"grid": {"scaling_coefficient": [0.1] * 2}}, "validation_failed", "/", "twice"),
    ({"grid": {"models.0.weight": list(range(40)), "models.1.weight": list(range(40))}},
     "validation_failed", "/", "1,600 points"),
    ({"merge": COPIES, "grid": {"models.0.weight": [1.0]}},
     "validation_failed", "/merge/method", "only copies"),
]  # fmt: skip


def test_a_faulty_sweep_is_refused_before_anything_runs(sweeping: House, subtests: pytest.Subtests) -> None:
    for changes, code, pointer, words in FAULTS:
        with subtests.test(str(changes)):
            response = sweeping.post("/v1/sweeps", {**GRID, **changes})

            problem = response.json()
            assert (response.status_code, problem["code"]) == (422, code), problem
            assert problem["errors"][0]["pointer"] == pointer
            assert words in problem["errors"][0]["message"]
    assert sweeping.read("/v1/jobs?kind=sweep")["items"] == []
