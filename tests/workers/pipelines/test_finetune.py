import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import JsonValue
from safetensors.torch import load_file

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint, Manifest
from app.domain.errors import HeadMismatch, IncompatibleCheckpoints
from app.domain.jobs import Progress
from app.domain.planning import plan_merge
from app.domain.recipes import Recipe, RecipeModel, pin
from app.domain.tasks import LocalTask, Measurement
from app.domain.work import FinetuneWork
from tests.workers import tiny_bert
from workers.catalog import load_adapter_recipe, load_finetuner
from workers.checkpoints.files import LINEARIZED_FILE
from workers.evaluators import text_classification
from workers.finetuning import full
from workers.model_contract import Evaluator
from workers.pipelines.adapter_merge import merge_adapters
from workers.pipelines.finetune import finetune
from workers.pipelines.fusing import fuse_adapter
from workers.pipelines.importing import import_checkpoint

EVALUATOR = text_classification.measure
PARAMETERS: dict[str, JsonValue] = {"steps": 60, "learning_rate": 0.02, "batch_size": 4}
SHORT = {"max_tokens": 16}

Result = tuple[Manifest, dict[str, JsonValue], tuple[Measurement, ...]]


def make_work(
    folder: Path, *, task: LocalTask | None = None, output: str = "out", seed: int = 0, **changes: Any
) -> FinetuneWork:
    base = folder / "base"
    base_model = tiny_bert.local(base if base.exists() else tiny_bert.make_encoder(base))
    (folder / output).mkdir()
    return FinetuneWork(
        base_model=base_model,
        head_base_model=base_model,
        task=task or tiny_bert.make_task(folder / "task", preprocessing=SHORT),
        technique="full",
        parameters=PARAMETERS,
        seed=seed,
        output=folder / output,
    ).model_copy(update=changes)


def run(work: FinetuneWork, reports: list[Progress] | None = None) -> Result:
    on_progress = tiny_bert.ignore if reports is None else reports.append
    return finetune(work, EVALUATOR, load_finetuner(work.technique), on_progress)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_task_is_learned_and_measured_on_validation(tmp_path: Path) -> None:
    _, report, measurements = run(make_work(tmp_path))
    losses = report["losses"]
    assert isinstance(losses, list)
    first, last = losses[0], losses[-1]
    assert isinstance(first, dict)
    assert isinstance(last, dict)
    assert (first["step"], last["step"]) == (1, 60)
    assert float(str(last["loss"])) < 0.2 * float(str(first["loss"]))
    assert [(m.name, m.split, m.n, m.value) for m in measurements] == [("accuracy", "validation", 6, 1.0)]


def test_same_work_same_bytes_other_seed_other_weights(tmp_path: Path) -> None:
    run(make_work(tmp_path))
    run(make_work(tmp_path, output="again"))
    run(make_work(tmp_path, output="other", seed=1))
    first, again, other = (read_all(tmp_path / name) for name in ("out", "again", "other"))
    assert first == again
    assert first["model.safetensors"] != other["model.safetensors"]


def test_manifest_is_that_of_an_import(tmp_path: Path) -> None:
    manifest, _, _ = run(make_work(tmp_path))
    assert manifest == import_checkpoint(tmp_path / "out", tiny_bert.ignore)
    assert {tensor.name for tensor in manifest.tensors} == set(load_file(tmp_path / "base/model.safetensors"))


def test_report_says_what_was_trained(tmp_path: Path) -> None:
    _, report, _ = run(make_work(tmp_path))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(name.startswith("encoder.") for name in changed)
    n_encoder = sum(value.numel() for name, value in before.items() if name.startswith("encoder."))
    assert report["n_trained_parameters"] == n_encoder
    assert report["n_changed_tensors"] == len(changed)
    assert report["parameters"] == full.FullParameters.model_validate(PARAMETERS).model_dump(mode="json")
    assert report["technique"] == "full"


def test_recipe_and_card_tell_the_inputs_and_no_folder_or_id(tmp_path: Path) -> None:
    work = make_work(tmp_path)
    run(work)
    recipe = json.loads((tmp_path / "out/finetune.json").read_text())
    pinned = {
        "content_digest": work.base_model.manifest.digest,
        "weights_digest": work.base_model.manifest.weights_digest,
    }
    assert recipe == {
        "format_version": 1,
        "technique": "full",
        "technique_version": 1,
        "base_model": pinned,
        "head_base_model": pinned,
        "task": {"name": "kind", "digest": work.task.spec.digest},
        "parameters": full.FullParameters.model_validate(PARAMETERS).model_dump(mode="json"),
        "seed": 0,
    }
    card = (tmp_path / "out/README.md").read_text()
    assert work.base_model.manifest.digest in card
    for text in (card, (tmp_path / "out/finetune.json").read_text()):
        assert str(tmp_path) not in text
        assert work.task.id not in text


def test_progress_counts_steps_with_loss_and_never_falls(tmp_path: Path) -> None:
    reports: list[Progress] = []
    run(make_work(tmp_path), reports)
    training = [report for report in reports if report.stage == "training"]
    assert [(report.done, report.total, report.unit) for report in training] == [(n, 60, "steps") for n in range(1, 61)]
    assert all(report.loss is not None and report.eta_seconds is not None for report in training)
    fractions = [report.fraction for report in reports]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert {report.stage for report in reports} == {"training", "writing", "hashing", "validating"}


def test_a_task_without_validation_is_not_measured(tmp_path: Path) -> None:
    task = tiny_bert.make_task(tmp_path / "task", preprocessing=SHORT)
    only_train = tiny_bert.as_task({"train": task.files["train"]}, preprocessing=SHORT)
    assert run(make_work(tmp_path, task=only_train))[2] == ()


def test_the_result_can_be_trained_again_under_the_first_base_s_head(tmp_path: Path) -> None:
    first = make_work(tmp_path)
    run(first)
    second = make_work(tmp_path, output="second").model_copy(update={"base_model": tiny_bert.local(tmp_path / "out")})
    manifest, _, measurements = run(second)
    recipe = json.loads((tmp_path / "second/finetune.json").read_text())
    assert recipe["base_model"] != recipe["head_base_model"]
    assert "README.md" in {file.path for file in manifest.files}
    assert measurements[0].value == 1.0


def test_settings_of_torch_are_put_back(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run(make_work(tmp_path))
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_an_evaluator_that_cannot_train_is_refused(tmp_path: Path) -> None:
    measuring_only = Evaluator(EVALUATOR.card, EVALUATOR.parameters, EVALUATOR.measure, None)
    with pytest.raises(HeadMismatch, match="'text-classification' cannot be trained on"):
        finetune(make_work(tmp_path), measuring_only, full.train, tiny_bert.ignore)


# --- adapters -----------------------------------------------------------------------------------------------------

LINEARIZED: dict[str, Any] = {
    "technique": "linearized_lora",
    "parameters": {
        "steps": 20,
        "learning_rate": 0.1,
        "batch_size": 4,
        "rank": 2,
        "target_modules": ["output.dense", "intermediate.dense"],
    },
}
LORA: dict[str, Any] = LINEARIZED | {"technique": "lora"}


@pytest.mark.parametrize("technique", [LORA, LINEARIZED], ids=["lora", "linearized_lora"])
def test_an_adapter_is_measured_as_it_was_trained(tmp_path: Path, technique: dict[str, Any]) -> None:
    work = make_work(tmp_path, **technique)
    work = work.model_copy(update={"parameters": work.parameters | {"validate_every": 10}})
    manifest, report, (on_the_way, last, result) = run(work)
    assert manifest == import_checkpoint(tmp_path / "out", tiny_bert.ignore)
    assert manifest.kind is CheckpointKind.ADAPTER
    assert (on_the_way.step, last.step, result.step) == (10, 20, None)
    assert result == last.model_copy(update={"step": None})
    assert float(str(report["final_loss"])) < 1.5  # from 2.2
    assert report["adapted_modules"] == [
        "encoder.layer.0.attention.output.dense", "encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense"
    ]  # fmt: skip
    assert not any(path.is_dir() for path in tmp_path.iterdir() if path.name not in ("base", "task", "out"))


def test_the_fold_of_a_linearized_adapter_is_the_net_that_was_trained(tmp_path: Path) -> None:
    work = make_work(tmp_path, **LINEARIZED)
    manifest, _, _ = run(work)
    adapter = LocalCheckpoint(id="", path=work.output, manifest=manifest)
    fused = load_file(fuse_adapter(adapter, work.base_model, tmp_path / "fused").path / "model.safetensors")
    base, learned = load_file(work.base_model.path / "model.safetensors"), load_file(work.output / LINEARIZED_FILE)
    module = "encoder.layer.0.output.dense"
    a0, b = (learned[f"{prefix}base_model.model.{module}.lora_{letter}.weight"].double()
             for prefix, letter in (("params0.", "A"), ("", "B")))  # fmt: skip
    expected = base[f"{module}.weight"].double() + 16 / 2 * b @ a0
    torch.testing.assert_close(fused[f"{module}.weight"].double(), expected, rtol=0, atol=1e-7)


def test_experts_of_two_tasks_merge_as_a_family(tmp_path: Path) -> None:
    works = [make_work(tmp_path, output=f"expert-{seed}", seed=seed, **LINEARIZED) for seed in (0, 1)]
    experts = [LocalCheckpoint(id="", path=work.output, manifest=run(work)[0]) for work in works]
    base = works[0].base_model
    card = load_catalog().method("linearized_lora")
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(base),
        models=tuple(RecipeModel(**pin(expert).model_dump()) for expert in experts),
        parameters={"merge": {"method": "average", "parameters": {}, "version": None}, "space": "factors"},
        shard_bytes=1 << 40,
        adapter_space="factors",
    )
    plan = plan_merge(recipe, base.manifest, [expert.manifest for expert in experts], card)
    code = load_adapter_recipe(recipe)
    (tmp_path / "merged").mkdir()
    merge_adapters(plan, code, recipe=recipe, base=base, models=experts, output=tmp_path / "merged",
                   on_progress=tiny_bert.ignore)  # fmt: skip
    name = "base_model.model.encoder.layer.0.output.dense.lora_B.weight"
    learned = [load_file(expert.path / LINEARIZED_FILE)[name] for expert in experts]
    merged = load_file(tmp_path / "merged/adapter_model.safetensors")[name]
    torch.testing.assert_close(merged, 16 / 2 * (learned[0] + learned[1]) / 2)


def test_an_expert_takes_the_start_of_its_family(tmp_path: Path) -> None:
    first = make_work(tmp_path, output="first", **LINEARIZED)
    first = first.model_copy(update={"parameters": first.parameters | {"init_seed": 5}})
    family = LocalCheckpoint(id="", path=first.output, manifest=run(first)[0])
    run(make_work(tmp_path, output="second", **LINEARIZED, family=family))
    one, other = (load_file(tmp_path / name / LINEARIZED_FILE) for name in ("first", "second"))
    starts = [name for name in one if name.startswith("params0.")]
    assert starts
    assert all(torch.equal(one[name], other[name]) for name in starts)
    assert "family" in json.loads((tmp_path / "second/finetune.json").read_text())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 4.0}, r"scales '.*' by 8.0 and this request by 2.0 \(alpha"),
        ({"rank": 4, "alpha": 32.0}, "has rank 2 in .* and this request rank 4"),
        ({"target_modules": ["query"]}, "adapts 3 modules and this request 1"),
    ],
)
def test_a_request_that_cannot_begin_where_its_family_did_is_told(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    first = make_work(tmp_path, output="first", **LINEARIZED)
    first = first.model_copy(update={"parameters": first.parameters | {"steps": 1}})
    family = LocalCheckpoint(id="", path=first.output, manifest=run(first)[0])
    second = make_work(tmp_path, output="second", **LINEARIZED, family=family)
    with pytest.raises(IncompatibleCheckpoints, match=message):
        run(second.model_copy(update={"parameters": second.parameters | changes}))


def test_a_family_of_plain_adapters_tells_no_start(tmp_path: Path) -> None:
    first = make_work(tmp_path, output="first", **LORA)
    family = LocalCheckpoint(id="", path=first.output, manifest=run(first)[0])
    with pytest.raises(IncompatibleCheckpoints, match="is no linearized adapter"):
        run(make_work(tmp_path, output="second", **LINEARIZED, family=family))


# --- attempts -----------------------------------------------------------------------------------------------------


FULL: dict[str, Any] = {"parameters": PARAMETERS | {"steps": 20}}


class Killed(Exception):
    """In the place of a signal."""


@pytest.mark.parametrize("technique", [FULL, LINEARIZED], ids=["full", "linearized_lora"])
def test_a_second_attempt_goes_on_and_gives_the_same_bytes(tmp_path: Path, technique: dict[str, Any]) -> None:
    run(make_work(tmp_path, output="whole", **technique))
    kept: dict[str, Any] = {"kept": tmp_path / "kept", "save_every_seconds": 0.0}
    killed = make_work(tmp_path, output="killed", **technique, **kept)

    def die(progress: Progress) -> None:
        if progress.done == 13:
            raise Killed

    with pytest.raises(Killed):
        finetune(killed, EVALUATOR, load_finetuner(killed.technique), die)
    reports: list[Progress] = []
    _, report, _ = run(make_work(tmp_path, output="resumed", **technique, **kept), reports)
    assert next(one.done for one in reports if one.stage == "training") == 13
    assert read_all(tmp_path / "resumed") == read_all(tmp_path / "whole")
    losses = report["losses"]
    assert isinstance(losses, list)
    assert losses[0] == {"step": 1, "loss": pytest.approx(2.2008, abs=1e-3)}


def test_what_another_request_kept_is_left_aside(tmp_path: Path) -> None:
    short: dict[str, Any] = {"parameters": PARAMETERS | {"steps": 3}}
    kept: dict[str, Any] = {"kept": tmp_path / "kept", "save_every_seconds": 0.0}
    run(make_work(tmp_path, output="first", **short, **kept))
    run(make_work(tmp_path, output="plain", seed=1, **short))
    run(make_work(tmp_path, output="second", seed=1, **short, **kept))
    assert read_all(tmp_path / "second") == read_all(tmp_path / "plain")
