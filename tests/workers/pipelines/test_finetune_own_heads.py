"""Classifiers with a head of their own: it learns along or stays, and their bodies are bases of other heads too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertForSequenceClassification

from app.domain.checkpoints import Manifest
from app.domain.errors import HeadMismatch, InvalidParameters, ModelNotRunnable
from app.domain.tasks import LocalTask, Measurement, OwnHead, PrototypesHead
from app.domain.work import FinetuneWork
from tests.workers import tiny_bert, tiny_vision
from workers.catalog import load_evaluator, load_finetuner
from workers.checkpoints.model import head_parameters
from workers.pipelines.finetune import finetune
from workers.pipelines.fusing import fuse_adapter

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

OWN = OwnHead()
QUICK: dict[str, Any] = {"steps": 20, "learning_rate": 0.03, "batch_size": 4}


def make_text_classifier(folder: Path) -> Path:
    return tiny_bert.make_classifier(folder, tiny_bert.CLASSES)


def make_image_classifier(folder: Path) -> Path:
    return tiny_vision.make_vit_classifier(folder, tiny_vision.CLASSES)


def make_texts(folder: Path) -> LocalTask:
    return tiny_bert.make_task(folder, head=OWN, preprocessing={"max_tokens": 16})


def make_images(folder: Path) -> LocalTask:
    return tiny_vision.make_task(folder, head=OWN)


def make_prototypes(folder: Path) -> LocalTask:
    return tiny_vision.make_task(folder, head=PrototypesHead(kind="prototypes", shots=2))


def make_prompts(folder: Path) -> LocalTask:
    return tiny_bert.make_task(folder, preprocessing={"max_tokens": 16})


both_kinds = pytest.mark.parametrize(
    ("make_model", "make_task"),
    [(make_text_classifier, make_texts), (make_image_classifier, make_images)],
    ids=["text", "image"],
)
MakeModel = Callable[[Path], Path]
MakeTask = Callable[[Path], LocalTask]


def make_work(
    folder: Path, make_model: MakeModel, make_task: MakeTask, technique: str, **parameters: Any
) -> FinetuneWork:
    base = tiny_bert.local(make_model(folder / "base"))
    (folder / "out").mkdir()
    return FinetuneWork(
        base_model=base,
        head_base_model=base,
        task=make_task(folder / "task"),
        technique=technique,
        parameters={**QUICK, **parameters},
        seed=0,
        output=folder / "out",
    )


def run(work: FinetuneWork) -> tuple[Manifest, dict[str, Any], tuple[Measurement, ...]]:
    evaluator = load_evaluator(work.task.spec.kind)
    manifest, report, measurements = finetune(work, evaluator, load_finetuner(work.technique), tiny_bert.ignore)
    return manifest, dict(report), measurements


def both(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    before, after = (load_file(folder / name / "model.safetensors") for name in ("base", "out"))
    return before, after


def changed(folder: Path) -> set[str]:
    before, after = both(folder)
    assert before.keys() == after.keys()
    return {name for name, tensor in before.items() if not tensor.equal(after[name])}


@both_kinds
def test_the_head_learns_along_and_the_result_is_measured(
    tmp_path: Path, make_model: MakeModel, make_task: MakeTask
) -> None:
    _, report, measurements = run(make_work(tmp_path, make_model, make_task, "full", steps=120, validate_every=120))
    names = changed(tmp_path)
    assert {"classifier.weight", "classifier.bias"} < names
    assert not [name for name in names if "embeddings" in name]
    assert report["losses"][-1]["loss"] < 0.5 * report["losses"][0]["loss"]
    on_the_way, result = measurements
    assert result == on_the_way.model_copy(update={"step": None})
    assert result.value == 1.0


@both_kinds
def test_a_frozen_head_stays_bit_by_bit(tmp_path: Path, make_model: MakeModel, make_task: MakeTask) -> None:
    run(make_work(tmp_path, make_model, make_task, "full", freeze_head=True))
    names = changed(tmp_path)
    assert names
    assert not [name for name in names if name.startswith("classifier")]


@both_kinds
@pytest.mark.parametrize("technique", ["lora", "linearized_lora"])
@pytest.mark.parametrize("freeze_head", [True, False])
def test_an_adapter_leaves_the_head_or_holds_it_whole(
    tmp_path: Path, make_model: MakeModel, make_task: MakeTask, technique: str, *, freeze_head: bool
) -> None:
    work = make_work(tmp_path, make_model, make_task, technique, freeze_head=freeze_head, validate_every=20, rank=2)
    manifest, _, (on_the_way, result) = run(work)
    whole = {tensor.name for tensor in manifest.tensors if "classifier" in tensor.name}
    names = {f"base_model.model.classifier.{leaf}" for leaf in ("weight", "bias")}
    assert whole == (set() if freeze_head else names)
    assert result == on_the_way.model_copy(update={"step": None})
    adapter = tiny_bert.local(work.output)
    fused = load_file(fuse_adapter(adapter, work.base_model, tmp_path / "fused").path / "model.safetensors")
    head = load_file(work.base_model.path / "model.safetensors")["classifier.weight"]
    assert torch.equal(fused["classifier.weight"], head) is freeze_head


def test_peft_loads_an_adapter_with_its_head_and_gives_the_same_outputs(tmp_path: Path) -> None:
    work = make_work(tmp_path, make_text_classifier, make_texts, "lora", freeze_head=False, rank=2)
    run(work)
    fused = fuse_adapter(tiny_bert.local(work.output), work.base_model, tmp_path / "fused").path
    inputs = torch.tensor([[2, 5, 8, 3], [2, 9, 14, 3]])
    ours = BertForSequenceClassification.from_pretrained(fused)(input_ids=inputs).logits
    base = BertForSequenceClassification.from_pretrained(work.base_model.path)
    before = base(input_ids=inputs).logits
    theirs = PeftModel.from_pretrained(base, work.output)(input_ids=inputs).logits
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(before, theirs, atol=1e-3)


def test_modules_of_the_head_are_no_targets(tmp_path: Path) -> None:
    work = make_work(tmp_path, make_text_classifier, make_texts, "lora", target_modules=["query", "classifier"])
    with pytest.raises(InvalidParameters, match=r"target_modules/1: 'classifier' lies in the head, or where no output"):
        run(work)


@pytest.mark.parametrize(
    ("make_model", "make_task"),
    [(make_text_classifier, make_prompts), (make_image_classifier, make_prototypes)],
    ids=["text", "image"],
)
@pytest.mark.parametrize("technique", ["full", "lora"])
def test_the_body_of_a_classifier_is_a_base_of_other_heads(
    tmp_path: Path, make_model: MakeModel, make_task: MakeTask, technique: str
) -> None:
    work = make_work(tmp_path, make_model, make_task, technique, validate_every=20)
    _, report, (on_the_way, result) = run(work)
    assert result == on_the_way.model_copy(update={"step": None})
    assert report["losses"][-1]["loss"] < report["losses"][0]["loss"]
    if technique == "full":
        names = changed(tmp_path)
        assert names
        assert all(name.startswith(("bert.encoder.", "vit.")) for name in names)


def test_a_head_of_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    work = make_work(tmp_path, lambda folder: tiny_bert.make_classifier(folder, ("a", "b", "c")), make_texts, "full")
    with pytest.raises(HeadMismatch, match="own head has 3 classes, task 'kind' has 2"):
        run(work)


def test_a_base_without_a_head_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    work = make_work(tmp_path, tiny_bert.make_encoder, make_texts, "full")
    with pytest.raises(ModelNotRunnable, match=r"2 tensors are missing: classifier\.bias, classifier\.weight"):
        run(work)


def test_a_head_beside_the_parts_of_its_body_is_told_by_its_name() -> None:
    parts = {"vision_model": torch.nn.Linear(1, 1), "classifier": torch.nn.Linear(1, 2)}
    assert head_parameters(torch.nn.ModuleDict(parts)) == {"classifier.weight", "classifier.bias"}
    with pytest.raises(ModelNotRunnable, match="ModuleDict, whose head cannot be told from its body; expected one"):
        head_parameters(torch.nn.ModuleDict({"out": torch.nn.Linear(1, 1)}))
