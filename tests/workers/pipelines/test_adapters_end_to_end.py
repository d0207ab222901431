"""From a task to a measured merge by adapters, for each kind of model that is not BERT; PEFT loads what was trained."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import CLIPModel, GPT2LMHeadModel, T5ForConditionalGeneration, ViTModel

from app.domain.catalog import load_catalog
from app.domain.checkpoints import CheckpointKind, LocalCheckpoint
from app.domain.recipes import Recipe, RecipeModel, pin
from app.domain.tasks import LocalTask, Measurement
from app.domain.work import CheckpointOutcome, EvaluateOutcome, EvaluateWork, FinetuneWork, MergeWork
from tests.workers import tiny_bert, tiny_language, tiny_vision
from tests.workers.files import read_tensors
from tests.workers.tiny_tasks import make_answers, make_images, make_prototypes, make_texts
from workers.runner import WorkOrder, perform

# PEFT asks transformers by a name that is going away
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PIXELS = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
TOKENS = torch.tensor([[4, 9, 12, 1], [5, 6, 13, 1]])


@dataclass(frozen=True)
class Kind:
    """A kind of model, a task for it, and what it gives of fixed inputs in the library's own class."""

    make_model: Callable[[Path], Path]
    make_task: Callable[[Path], LocalTask]
    library: Any
    output: Callable[[Any], Tensor]
    adapted: tuple[str, ...]  # modules, by default


def embed_images(model: Any) -> Tensor:
    found = model.get_image_features(pixel_values=PIXELS)
    features: Tensor = getattr(found, "pooler_output", found)
    return features


KINDS = {
    "clip": Kind(
        tiny_vision.make_clip,
        make_images,
        CLIPModel,
        embed_images,
        tuple(f"vision_model.encoder.layers.0.self_attn.{name}_proj" for name in "qv"),
    ),
    "vit": Kind(
        tiny_vision.make_vit,
        make_prototypes,
        ViTModel,
        lambda model: model(pixel_values=PIXELS).last_hidden_state,
        (),
    ),
    "t5": Kind(
        tiny_language.make_t5,
        make_answers,
        T5ForConditionalGeneration,
        lambda model: model(input_ids=TOKENS, decoder_input_ids=TOKENS).logits,
        tuple(
            f"{place}.{name}"
            for place in (
                "decoder.block.0.layer.0.SelfAttention",
                "decoder.block.0.layer.1.EncDecAttention",
                "encoder.block.0.layer.0.SelfAttention",
            )
            for name in "qv"
        ),
    ),
    "gpt2": Kind(
        tiny_language.make_gpt2,
        make_texts,
        GPT2LMHeadModel,
        lambda model: model(input_ids=TOKENS).logits,
        ("transformer.h.0.attn.c_attn",),
    ),
}


@dataclass(frozen=True)
class Trained:
    """A base and two adapters on it that were trained on one task, in different orders."""

    kind: Kind
    base: LocalCheckpoint
    task: LocalTask
    adapters: tuple[LocalCheckpoint, ...]
    outcomes: tuple[CheckpointOutcome, ...]

    def merge(self, folder: Path, method: str, models: tuple[LocalCheckpoint, ...]) -> LocalCheckpoint:
        """Merge adapters as dense models, as a job process does."""
        folder.mkdir()
        weights = [1.0] * len(models)
        card, parameters = load_catalog().check(method, {}, has_base_model=True, weights=weights)
        recipe = Recipe(
            method=card.name,
            method_version=card.version,
            base_model=pin(self.base),
            models=tuple(RecipeModel(**pin(model).model_dump()) for model in models),
            parameters=parameters,
            shard_bytes=1 << 40,
            adapter_space="delta",
        )
        work = MergeWork(recipe=recipe, base_model=self.base, models=models, output=folder)
        outcome = perform(WorkOrder(work=work), tiny_bert.ignore)
        assert isinstance(outcome, CheckpointOutcome)
        return LocalCheckpoint(id="", path=folder, manifest=outcome.manifest)

    def measure(self, checkpoint: LocalCheckpoint, scratch: Path) -> Measurement:
        """Evaluate a checkpoint on the task, as a job process does."""
        is_adapter = checkpoint.manifest.kind is CheckpointKind.ADAPTER
        work = EvaluateWork(
            checkpoint=checkpoint,
            tasks=(self.task,),
            base_models={self.task.id: self.base},
            split={self.task.id: "validation"},
            adapter_base=self.base if is_adapter else None,
            scratch=scratch if is_adapter else None,
        )
        outcome = perform(WorkOrder(work=work), tiny_bert.ignore)
        assert isinstance(outcome, EvaluateOutcome)
        (found,) = outcome.measurements
        return found

    def run(self, folder: Path) -> Tensor:
        """Return what a dense model gives."""
        with torch.no_grad():
            return self.kind.output(self.kind.library.from_pretrained(folder))


CASES = [(kind, technique) for kind in KINDS for technique in ("lora", "linearized_lora")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    name, technique = request.param
    folder, kind = tmp_path_factory.mktemp("trained"), KINDS[name]
    base, task = tiny_bert.local(kind.make_model(folder / "base")), kind.make_task(folder / "task")
    outcomes: list[CheckpointOutcome] = []
    for seed in (0, 1):
        (folder / f"adapter-{seed}").mkdir()
        work = FinetuneWork(
            base_model=base,
            head_base_model=base,
            task=task,
            technique=technique,
            parameters={"steps": 6, "learning_rate": 0.1, "batch_size": 4, "rank": 2, "validate_every": 6},
            seed=seed,
            output=folder / f"adapter-{seed}",
        )
        outcome = perform(WorkOrder(work=work), tiny_bert.ignore)
        assert isinstance(outcome, CheckpointOutcome)
        outcomes.append(outcome)
    adapters = tuple(tiny_bert.local(folder / f"adapter-{seed}") for seed in (0, 1))
    return Trained(kind, base, task, adapters, tuple(outcomes))


def test_what_the_task_reaches_is_adapted_and_nothing_else(trained: Trained) -> None:
    adapted = trained.outcomes[0].report["adapted_modules"]
    assert isinstance(adapted, list)
    if trained.kind.adapted:
        assert tuple(adapted) == trained.kind.adapted
    else:
        assert len(adapted) == 2  # ViT's query and value, which the library renames
    assert not [tensor.name for tensor in trained.adapters[0].manifest.tensors if "text" in tensor.name]


def test_peft_loads_the_adapter_and_gives_the_outputs_of_the_fused_model(trained: Trained, tmp_path: Path) -> None:
    fused = trained.merge(tmp_path / "fused", "lora_fuse", trained.adapters[:1])
    base = trained.kind.library.from_pretrained(trained.base.path)
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, trained.adapters[0].path)
        theirs = trained.kind.output(loaded.get_base_model())
    torch.testing.assert_close(trained.run(fused.path), theirs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(trained.run(trained.base.path), theirs, atol=1e-3)


def test_adapter_and_fused_model_measure_as_the_training_did(trained: Trained, tmp_path: Path) -> None:
    on_the_way, result = trained.outcomes[0].measurements
    fused = trained.merge(tmp_path / "fused", "lora_fuse", trained.adapters[:1])
    assert result.value == pytest.approx(on_the_way.value, rel=1e-5)
    assert trained.measure(trained.adapters[0], tmp_path / "scratch") == result
    assert trained.measure(fused, tmp_path / "unused") == result


def test_the_average_is_the_mean_of_the_fused_models_and_is_measured(trained: Trained, tmp_path: Path) -> None:
    merged = trained.merge(tmp_path / "merged", "average", trained.adapters)
    parts = [
        read_tensors(trained.merge(tmp_path / f"fused-{index}", "lora_fuse", (one,)).path)
        for index, one in enumerate(trained.adapters)
    ]
    found = read_tensors(merged.path)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, (parts[0][name] + parts[1][name]) / 2, rtol=1e-6, atol=1e-7, msg=name)
    assert any(not torch.equal(tensor, parts[0][name]) for name, tensor in found.items())
    value = trained.measure(merged, tmp_path / "scratch").value
    assert value is not None
    assert value >= 0
