"""The demonstration's verdict on numbers made up for the purpose, and its whole story on a tiny model."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from app.cli.client import Client
from app.cli.comparing import Row
from app.cli.demo import find_script
from app.cli.demonstration import (
    PRETRAINED,
    RECIPES,
    DemoFailed,
    DemoRecipe,
    DemoResult,
    DemoScript,
    check_claims,
    perform,
    submit_once,
)
from tests.embedded import Serve
from tests.workers.tiny_bert import CLASSES, PROMPTS, make_encoder, make_rows, write_rows

INDIVIDUAL = "individual (one model per task)"


def result(*, base: float, average: float, ties: float, individual: float) -> DemoResult:
    means = {PRETRAINED: base, "average": average, "ties": ties, INDIVIDUAL: individual}
    rows = tuple(Row(label, (mean,), (None,)) for label, mean in means.items())
    return DemoResult(("emoji",), rows, ("average", "ties"), {})


GOOD = {"base": 0.68, "average": 0.82, "ties": 0.85, "individual": 0.87}


def test_all_claims_hold_on_good_numbers_and_say_them() -> None:
    claims = check_claims(result(**GOOD))

    assert [claim.holds for claim in claims] == [True] * 4
    assert "(ties, 85.0 %) is 17.0 points above the pre-trained one (68.0 %)" in claims[0].text
    assert "ties is 3.0 points above the plain average (82.0 %)" in claims[1].text
    assert "keeps 97.7 % of the accuracy of 1 separate models (87.0 %), which are 2.0 points ahead" in claims[3].text


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"base": 0.801}, 0),  # 4.9 points
        ({"ties": 0.82}, 1),  # no better than the average
        ({"average": 0.68}, 2),  # no better than the pre-trained model
        ({"individual": 0.844}, 3),  # 0.6 points below the best merged
    ],
)
def test_each_claim_can_break_alone(changes: dict[str, float], broken: int) -> None:
    claims = check_claims(result(**{**GOOD, **changes}))

    assert [index for index, claim in enumerate(claims) if not claim.holds] == [broken]


def test_a_merged_model_may_exceed_the_individual_ones_by_half_a_point() -> None:
    assert check_claims(result(**{**GOOD, "individual": 0.8451}))[3].holds


def test_the_real_script_finds_its_model_and_tasks() -> None:
    script = find_script()

    assert (script.model_folder / "model.safetensors").is_file()
    assert [file.parent.name for file in script.task_files] == ["wordnet_sense", "emoji_name", "language_id"]
    assert [recipe.method for recipe in script.recipes] == ["average", "task_arithmetic", "ties", "breadcrumbs"]


@pytest.fixture
def tiny(service: Serve) -> DemoScript:
    """The demonstration with a tiny model, two tasks and two recipes, below the service's file roots."""
    folder = service.home.parent / "tiny-demo"
    model = folder / "model" if folder.exists() else make_encoder(folder / "model")
    tasks = tuple(write_task(folder / name, n_rows) for name, n_rows in (("kind", 12), ("sort", 10)))
    recipes = (DemoRecipe("average"), DemoRecipe("task_arithmetic", {"scaling_coefficient": 0.5}))
    return DemoScript("tiny", model, tasks, recipes, {"steps": 3, "batch_size": 4})


def write_task(folder: Path, n_rows: int) -> Path:
    """Write a task.json with data files beside it; equal content each time."""
    rows = make_rows()[-n_rows:]
    parts = {"train": rows, "validation": rows, "test": rows[::-1]}
    dataset = {split: write_rows(folder / f"{split}.jsonl", part).name for split, part in parts.items()}
    body = {
        "name": folder.name,
        "kind": "text-classification",
        "dataset": dataset,
        "classes": CLASSES,
        "head": {"kind": "label_prompts", "prompts": PROMPTS},
        "preprocessing": {"max_tokens": 16},
    }
    (folder / "task.json").write_text(json.dumps(body))
    return folder / "task.json"


def play(service: Serve, script: DemoScript) -> tuple[DemoResult, str]:
    text = io.StringIO()
    with Client(service.url) as client:
        played = perform(client, script, Console(file=text, width=120))
    return played, text.getvalue()


def test_the_story_measures_every_model_on_every_task(service: Serve, tiny: DemoScript) -> None:
    played, _ = play(service, tiny)

    labels = [PRETRAINED, "average", "task_arithmetic", INDIVIDUAL, "kind expert", "sort expert"]
    assert [row.label for row in played.rows] == labels
    assert all(row.average is not None for row in played.rows)
    assert played.individual.values == (played.row("kind expert").values[0], played.row("sort expert").values[1])


def test_told_again_it_makes_nothing_new(service: Serve, tiny: DemoScript) -> None:
    first, _ = play(service, tiny)
    with Client(service.url) as client:
        n_jobs = len(list(client.items("/v1/jobs")))

        again, text = play(service, tiny)

        assert len(list(client.items("/v1/jobs"))) == n_jobs
    assert again == first
    assert "merge by average: there already" in text
    assert "5 of 5 models were measured before" in text


def test_another_recipe_is_made_beside_what_is_there(service: Serve, tiny: DemoScript) -> None:
    first, _ = play(service, tiny)

    other, _ = play(service, replace(tiny, recipes=(DemoRecipe("average"), DemoRecipe("task_arithmetic"))))

    assert other.checkpoints["average"]["id"] == first.checkpoints["average"]["id"]
    assert other.checkpoints["task_arithmetic"]["id"] != first.checkpoints["task_arithmetic"]["id"]
    assert other.checkpoints["task_arithmetic"]["name"] == "merged-task-arithmetic"


def test_a_job_that_fails_ends_the_story_with_its_reason(service: Serve, tiny: DemoScript) -> None:
    broken = service.home.parent / "broken-demo-model"
    broken.mkdir(exist_ok=True)
    (broken / "model.safetensors").write_bytes(b"not a header")

    with pytest.raises(DemoFailed, match=r"register broken failed: model\.safetensors"):
        play(service, replace(tiny, model_name="broken", model_folder=broken))


def test_work_that_was_handed_in_before_is_found_again(service: Serve, tiny: DemoScript) -> None:
    play(service, tiny)
    body = {"checkpoint": "tiny", "tasks": ["kind"], "split": "validation"}

    with Client(service.url) as client:
        first = submit_once(client, "/v1/evaluations", body)

        assert submit_once(client, "/v1/evaluations", body) == first


def test_work_that_was_canceled_is_handed_in_anew(service: Serve, tiny: DemoScript) -> None:
    play(service, tiny)
    body = {"base_model": "tiny", "task": "kind", "parameters": {"steps": 100_000}, "output": {"name": "long"}}

    with Client(service.url) as client:
        first = submit_once(client, "/v1/finetunes", body)
        client.post(f"/v1/jobs/{first}/cancel")
        client.wait(first)
        second = submit_once(client, "/v1/finetunes", body)
        client.post(f"/v1/jobs/{second}/cancel")
        client.wait(second)

    assert second != first


def test_what_was_deleted_is_made_anew(service: Serve, tiny: DemoScript) -> None:
    other = replace(tiny, recipes=(DemoRecipe("average"), DemoRecipe("task_arithmetic", {"scaling_coefficient": 0.25})))
    first, _ = play(service, other)
    with Client(service.url) as client:
        client.delete(f"/v1/checkpoints/{first.checkpoints['task_arithmetic']['id']}")

    again, _ = play(service, other)

    assert again.checkpoints["task_arithmetic"]["id"] != first.checkpoints["task_arithmetic"]["id"]


def test_the_recipes_of_the_demo_are_those_of_the_issue() -> None:
    assert [recipe.method for recipe in RECIPES] == ["average", "task_arithmetic", "ties", "breadcrumbs"]
