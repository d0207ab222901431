"""The evaluator against brute force: one image at a time through transformers' own classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, ViTForImageClassification, ViTModel

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import HeadMismatch, ModelNotRunnable
from app.domain.tasks import LinearHead, LocalTask, Measurement, OwnHead, PrototypesHead
from tests.workers import tiny_bert, tiny_vision
from workers.checkpoints.model import Models
from workers.evaluators import image_classification
from workers.model_contract import Subject

LINEAR = LinearHead(kind="linear", weights="file:///head.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.make_clip(tmp_path_factory.mktemp("base") / "base", seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.make_clip(tmp_path_factory.mktemp("other") / "other", seed=2)


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision.make_vit(tmp_path_factory.mktemp("vit") / "vit", seed=3)


def processor_of(folder: Path) -> Any:
    return AutoImageProcessor.from_pretrained(folder, backend="pil")  # type: ignore[no-untyped-call]


def measure(task: LocalTask, checkpoint: Path, base: Path | None = None) -> Measurement:
    subject = Subject(task, tiny_bert.local(checkpoint), tiny_bert.local(base or checkpoint))
    (found,) = image_classification.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    return found


def count_hits(feature: Callable[[Tensor], Tensor], folder: Path, vectors: Tensor) -> int:
    """Return how many test images lie nearest to their class's vector; vectors: [n_classes, width] of any length."""
    processor = processor_of(folder)
    unit = vectors / vectors.norm(dim=-1, keepdim=True)
    pixels, labels = tiny_vision.make_images(seed=2)
    hits = 0
    for image, label in zip(pixels, labels, strict=True):
        with torch.no_grad():
            found = feature(processor(images=Image.fromarray(image), return_tensors="pt")["pixel_values"])
        hits += int((unit @ (found[0] / found[0].norm())).argmax()) == label
    return hits


def embed_texts(folder: Path, texts: tuple[str, ...]) -> Tensor:
    clip, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        found = [
            clip.get_text_features(
                **{k: v for k, v in tokenizer(text, return_tensors="pt").items() if k != "token_type_ids"}
            ).pooler_output[0]
            for text in texts
        ]
    return torch.stack([one / one.norm() for one in found])


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_label_prompts_are_clip_s_zero_shot_classifier(
    tmp_path: Path, base: Path, other: Path, batch_size: int
) -> None:
    task = tiny_vision.make_task(tmp_path, preprocessing={"batch_size": batch_size, "templates": ["a {}", "{} is a"]})
    views = [
        embed_texts(base, tuple(form.replace("{}", p) for p in tiny_vision.PROMPTS)) for form in ("a {}", "{} is a")
    ]
    clip = CLIPModel.from_pretrained(other)
    hits = count_hits(lambda pixels: clip.get_image_features(pixels).pooler_output, other, torch.stack(views).mean(0))

    found = measure(task, other, base)

    assert (found.name, found.n, found.details.n_correct) == ("accuracy", 12, hits)


@pytest.mark.parametrize("is_projected", [True, False])
def test_an_image_tower_alone_serves_like_the_whole_model(tmp_path: Path, base: Path, *, is_projected: bool) -> None:
    tower = tiny_vision.make_clip_tower(tmp_path / "tower", is_projected=is_projected, seed=1)  # base's own
    task = tiny_vision.make_task(tmp_path)
    assert measure(task, tower, base).details == measure(task, base).details


def test_prototypes_are_the_base_model_s_mean_features(tmp_path: Path, vit: Path) -> None:
    moved = tiny_vision.make_vit(tmp_path / "moved", seed=4)
    task = tiny_vision.make_task(tmp_path, head=PrototypesHead(kind="prototypes", shots=3))
    processor, base = processor_of(vit), ViTModel.from_pretrained(vit)
    pixels, labels = tiny_vision.make_images(seed=0)
    vectors = []
    for label in range(2):
        with torch.no_grad():
            chosen = [Image.fromarray(one) for one, of in zip(pixels, labels, strict=True) if of == label][:3]
            found = base(**processor(images=chosen, return_tensors="pt")).last_hidden_state[:, 0]
        vectors.append((found / found.norm(dim=-1, keepdim=True)).mean(0))
    model = ViTModel.from_pretrained(moved)
    hits = count_hits(lambda one: model(one).last_hidden_state[:, 0], moved, torch.stack(vectors))

    assert measure(task, moved, vit).details.n_correct == hits


def test_more_shots_than_examples_are_refused(tmp_path: Path, vit: Path) -> None:
    task = tiny_vision.make_task(tmp_path, head=PrototypesHead(kind="prototypes", shots=7))
    with pytest.raises(HeadMismatch, match=r"Class 'dark' .* has 6 training examples, its prototype takes 7"):
        measure(task, vit)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_linear_head_is_applied_to_the_pooled_feature(tmp_path: Path, vit: Path, pooling: str) -> None:
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "head.safetensors"
    save_file({"weight": weight / weight.norm(dim=-1, keepdim=True)}, file)
    task = tiny_vision.make_task(tmp_path, head=LINEAR, preprocessing={"pooling": pooling}, head_weights=file)
    model = ViTModel.from_pretrained(vit)

    def feature(pixels: Tensor) -> Tensor:
        hidden: Tensor = model(pixels).last_hidden_state
        return hidden[:, 0] if pooling == "cls" else hidden.mean(1)

    assert measure(task, vit).details.n_correct == count_hits(feature, vit, weight)


def test_own_head_is_matched_by_class_name(tmp_path: Path) -> None:
    folder = tiny_vision.make_vit_classifier(tmp_path / "own", ("bright", "dark"), seed=5)
    model = ViTForImageClassification.from_pretrained(folder)
    processor = processor_of(folder)
    pixels, labels = tiny_vision.make_images(seed=2)
    with torch.no_grad():
        logits = model(**processor(images=[Image.fromarray(one) for one in pixels], return_tensors="pt")).logits
    hits = sum(int(1 - found) == label for found, label in zip(logits.argmax(-1), labels, strict=True))

    assert measure(tiny_vision.make_task(tmp_path, head=OwnHead()), folder).details.n_correct == hits


@pytest.mark.parametrize("head", [PrototypesHead(kind="prototypes", shots=3), OwnHead()])
@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_no_number_depends_on_the_batch_size(tmp_path: Path, head: PrototypesHead | OwnHead, metric: str) -> None:
    folder = tiny_vision.make_vit_classifier(tmp_path / "own", tiny_vision.CLASSES, seed=5)
    found = []
    for batch_size in (1, 5, 64):  # of 12 images: one at a time, with a smaller last batch, all at once
        task = tiny_vision.make_task(tmp_path, head=head, metric=metric, preprocessing={"batch_size": batch_size})
        found.append(measure(task, folder))

    assert all(one == found[0] for one in found)  # value, standard error, interval, counts per class
    assert sum(row.n for row in found[0].details.per_class) == 12


def test_label_prompts_need_a_text_tower(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(ModelNotRunnable, match="ViTModel, which has no text tower"):
        measure(tiny_vision.make_task(tmp_path), vit)


def test_a_model_of_texts_is_refused(tmp_path: Path, base: Path) -> None:
    bert = tiny_bert.make_encoder(tmp_path / "bert")
    with pytest.raises(ModelNotRunnable, match="BertModel; expected a model of images"):
        measure(tiny_vision.make_task(tmp_path), bert, base)


def test_a_checkpoint_without_an_image_processor_is_refused(tmp_path: Path, base: Path) -> None:
    folder = tiny_vision.make_clip(tmp_path / "bare", seed=1)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelNotRunnable, match=r"has no preprocessor_config\.json"):
        measure(tiny_vision.make_task(tmp_path), folder, base)


def test_trainable_trains_the_image_tower_alone(tmp_path: Path, base: Path) -> None:
    checkpoint: LocalCheckpoint = tiny_bert.local(base)
    task = tiny_vision.make_task(tmp_path)
    trainable = image_classification.make_trainable(Subject(task, checkpoint, checkpoint), Models())
    trainable.module.requires_grad_(requires_grad=True)

    trainable.loss([0, 1, 5]).backward()  # type: ignore[no-untyped-call]

    learned = {name for name, value in trainable.module.named_parameters() if value.grad is not None}
    assert {name.split(".")[0] for name in learned} == {"vision_model", "visual_projection"}
    assert "vision_model.embeddings.class_embedding" in trainable.embeddings
    assert trainable.n_examples == 12
    assert trainable.unreached == {name for name, value in trainable.module.named_parameters() if value.grad is None}


def test_a_model_of_images_alone_is_reached_whole(tmp_path: Path, vit: Path) -> None:
    task = tiny_vision.make_task(tmp_path / "task", head=PrototypesHead(kind="prototypes", shots=2))
    tower = tiny_vision.make_clip_tower(tmp_path / "tower", is_projected=True)
    for folder in (vit, tower):
        checkpoint = tiny_bert.local(folder)
        trainable = image_classification.make_trainable(Subject(task, checkpoint, checkpoint), Models())
        assert trainable.unreached == frozenset()
