"""The evaluator against brute force: one text at a time through transformers' own classes, unpadded, unbatched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoTokenizer, BertForSequenceClassification, BertModel

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import HeadMismatch, InputChanged, InvalidParameters, NotFinite
from app.domain.tasks import Head, LinearHead, LocalTask, Measurement, OwnHead, PrototypesHead
from tests.workers import tiny_bert
from workers.checkpoints.model import Models
from workers.evaluators import text_classification
from workers.model_contract import Subject

OWN = OwnHead(kind="own")
LINEAR = LinearHead(kind="linear", weights="file:///head.safetensors")


def measure(task: LocalTask, checkpoint: LocalCheckpoint, base_model: LocalCheckpoint | None = None) -> Measurement:
    subject = Subject(task, checkpoint, base_model or checkpoint)
    evaluator = text_classification.measure
    (measurement,) = evaluator.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    return measurement


def brute_force_features(folder: Path, pooling: str = "mean", max_tokens: int = 40) -> Callable[[str], Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel.from_pretrained(folder)

    def feature(text: str) -> Tensor:
        tokens = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state[0]
        found: Tensor = hidden[0] if pooling == "cls" else hidden.mean(dim=0)
        unit: Tensor = found / found.norm()
        return unit

    return feature


def expected(logits: Callable[[str], Tensor], *, max_characters: int = 400) -> float:
    rows = tiny_bert.make_rows()[1::2]
    hits = [int(logits(str(row["text"])[:max_characters]).argmax()) == row["label"] for row in rows]
    return sum(hits) / len(hits)


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    return tiny_bert.make_encoder(tmp_path / "base", seed=3)


@pytest.fixture
def other_folder(tmp_path: Path) -> Path:
    return tiny_bert.make_encoder(tmp_path / "other", seed=4)


@pytest.mark.parametrize(
    "preprocessing",
    [
        {"max_tokens": 16},
        {"max_tokens": 16, "batch_size": 1},
        {"max_tokens": 16, "batch_size": 4096},
        {"max_tokens": 3},
        {"max_tokens": 16, "pooling": "cls"},
        {"max_tokens": 16, "max_characters": 4},
        {"max_tokens": 16, "normalize": False},
    ],
)
def test_label_prompts_are_cosines_with_the_base_model_s_features(
    tmp_path: Path, base_folder: Path, other_folder: Path, preprocessing: dict[str, Any]
) -> None:
    pooling, max_tokens = preprocessing.get("pooling", "mean"), preprocessing["max_tokens"]
    max_characters = preprocessing.get("max_characters", 400)
    base_feature = brute_force_features(base_folder, pooling, max_tokens)
    feature = brute_force_features(other_folder, pooling, max_tokens)
    head = torch.stack([base_feature(prompt[:max_characters]) for prompt in tiny_bert.PROMPTS])
    task = tiny_bert.make_task(tmp_path, preprocessing=preprocessing)
    found = measure(task, tiny_bert.local(other_folder), tiny_bert.local(base_folder))
    assert found.value == expected(lambda text: head @ feature(text), max_characters=max_characters)


def test_accuracy_comes_with_count_and_standard_error(tmp_path: Path, base_folder: Path) -> None:
    found = measure(tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16}), tiny_bert.local(base_folder))
    assert found.value is not None
    assert (found.task, found.name, found.split, found.n) == ("task_kind", "accuracy", "test", 6)
    assert (found.unit, found.higher_is_better) == ("fraction", True)
    assert found.stderr == pytest.approx((found.value * (1 - found.value) / 6) ** 0.5)


@pytest.mark.parametrize("bias", [None, torch.tensor([0.3, -0.3])])
@pytest.mark.parametrize("normalize", [True, False])
def test_linear_head_is_weight_times_feature_plus_bias(
    tmp_path: Path, base_folder: Path, bias: Tensor | None, *, normalize: bool
) -> None:
    weight = torch.randn(2, 8, generator=torch.Generator().manual_seed(1))
    file = tmp_path / "head.safetensors"
    save_file({"weight": weight} if bias is None else {"weight": weight, "bias": bias}, file)
    preprocessing = {"max_tokens": 16, "normalize": normalize}
    task = tiny_bert.make_task(tmp_path, head=LINEAR, head_weights=file, preprocessing=preprocessing)
    tokenizer, model = AutoTokenizer.from_pretrained(base_folder), BertModel.from_pretrained(base_folder)

    def logits(text: str) -> Tensor:
        with torch.no_grad():
            feature = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        scaled = feature / feature.norm() if normalize else feature
        found: Tensor = weight @ scaled + (0 if bias is None else bias)
        return found

    assert measure(task, tiny_bert.local(base_folder)).value == expected(logits)


@pytest.mark.parametrize(("labels", "order"), [(("a", "b"), [0, 1]), (("animal", "color"), [1, 0])])
def test_own_head_is_matched_by_class_name_else_by_position(
    tmp_path: Path, labels: tuple[str, str], order: list[int]
) -> None:
    folder = tiny_bert.make_classifier(tmp_path / "own", labels, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder)

    def logits(text: str) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(**tokenizer(text, return_tensors="pt")).logits[0]
        return found[order]

    task = tiny_bert.make_task(tmp_path, head=OWN, preprocessing={"max_tokens": 16})
    assert measure(task, tiny_bert.local(folder)).value == expected(logits)


@pytest.mark.parametrize("head", [None, PrototypesHead(kind="prototypes", shots=3), OWN])
@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_no_number_depends_on_the_batch_size(tmp_path: Path, head: Head | None, metric: str) -> None:
    folder = tiny_bert.make_classifier(tmp_path / "own", tiny_bert.CLASSES, seed=5)  # its body serves the other heads
    found = []
    for batch_size in (1, 4, 5, 4096):  # of 6 texts: one at a time, with a smaller last batch, all at once
        preprocessing = {"max_tokens": 16, "batch_size": batch_size}
        task = tiny_bert.make_task(tmp_path, head=head, metric=metric, preprocessing=preprocessing)
        found.append(measure(task, tiny_bert.local(folder)))

    assert all(one == found[0] for one in found)  # value, standard error, interval, counts per class
    assert [row.n for row in found[0].details.per_class] == [3, 3]


def test_texts_of_like_numbers_of_tokens_are_run_together(tmp_path: Path, base_folder: Path) -> None:
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16, "batch_size": 2})
    base_model = tiny_bert.local(base_folder)
    opened = text_classification.open_(Subject(task, base_model, base_model), "test", Models())
    texts = [str(row["text"]) for row in tiny_bert.make_rows()[1::2]]
    order = [index for batch in opened.batches() for index in batch]
    assert sorted(order) == list(range(6))
    n_words = [len(texts[index].split()) for index in order]  # a word is a token here, whatever its length
    assert n_words == sorted(n_words)


def test_progress_counts_every_example(tmp_path: Path, base_folder: Path) -> None:
    base_model = tiny_bert.local(base_folder)
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16, "batch_size": 4})
    seen: list[tuple[int, int]] = []
    text_classification.measure.measure(
        Subject(task, base_model, base_model), "test", Models(), lambda done, total: seen.append((done, total))
    )
    assert seen == [(4, 6), (6, 6)]


def test_a_classifier_s_body_serves_as_encoder(tmp_path: Path) -> None:
    folder = tiny_bert.make_classifier(tmp_path / "own", ("a", "b"))
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16})
    assert measure(task, tiny_bert.local(folder)).n == 6


def test_more_tokens_than_positions_are_refused(tmp_path: Path, base_folder: Path) -> None:
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 17})
    with pytest.raises(InvalidParameters, match="max_tokens is 17, the model has positions for 16 tokens"):
        measure(task, tiny_bert.local(base_folder))


def test_a_head_for_other_classes_is_refused(tmp_path: Path) -> None:
    folder = tiny_bert.make_classifier(tmp_path / "own", ("a", "b", "c"))
    task = tiny_bert.make_task(tmp_path, head=OWN, preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match="own head has 3 classes, task 'kind' has 2"):
        measure(task, tiny_bert.local(folder))


def test_a_prompt_too_few_is_refused(tmp_path: Path, base_folder: Path) -> None:
    task = tiny_bert.make_task(tmp_path, classes=("color", "animal", "plant"), preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match="has 3 classes and 2 label prompts"):
        measure(task, tiny_bert.local(base_folder))


def test_an_encoder_of_another_width_than_the_head_is_refused(tmp_path: Path, base_folder: Path) -> None:
    wide = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "wide", hidden_size=12))
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match="features have width 12, the head's class vectors 8"):
        measure(task, wide, tiny_bert.local(base_folder))


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(3, 8)},
        {"weight": torch.zeros(2)},
        {"weights": torch.zeros(2, 8)},
        {"weight": torch.zeros(2, 8), "bias": torch.zeros(3)},
        {"weight": torch.zeros(2, 8), "scale": torch.zeros(1)},
    ],
)
def test_a_linear_head_of_another_form_is_refused(
    tmp_path: Path, base_folder: Path, tensors: dict[str, Tensor]
) -> None:
    file = tmp_path / "head.safetensors"
    save_file(tensors, file)
    task = tiny_bert.make_task(tmp_path, head=LINEAR, head_weights=file, preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match=r"expected 'weight' \[2, width\] and optionally 'bias' \[2\]"):
        measure(task, tiny_bert.local(base_folder))


def test_a_linear_head_that_is_no_safetensors_file_is_refused(tmp_path: Path, base_folder: Path) -> None:
    file = tmp_path / "head.safetensors"
    file.write_bytes(b"not a header")
    task = tiny_bert.make_task(tmp_path, head=LINEAR, head_weights=file, preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match="linear head cannot be read"):
        measure(task, tiny_bert.local(base_folder))


def test_a_linear_head_that_changed_is_refused(tmp_path: Path, base_folder: Path) -> None:
    file = tmp_path / "head.safetensors"
    save_file({"weight": torch.zeros(2, 8)}, file)
    task = tiny_bert.make_task(tmp_path, head=LINEAR, head_weights=file, preprocessing={"max_tokens": 16})
    save_file({"weight": torch.ones(2, 8)}, file)
    with pytest.raises(InputChanged, match="linear head changed since the task was made"):
        measure(task, tiny_bert.local(base_folder))


def test_a_linear_head_without_its_file_is_refused(tmp_path: Path, base_folder: Path) -> None:
    task = tiny_bert.make_task(tmp_path, head=LINEAR, preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match="linear head without its weights file"):
        measure(task, tiny_bert.local(base_folder))


def test_a_model_that_gives_no_numbers_is_refused(tmp_path: Path, base_folder: Path, other_folder: Path) -> None:
    weights = load_file(other_folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(weights, other_folder / "model.safetensors", metadata={"format": "pt"})
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16})
    with pytest.raises(NotFinite, match="logits on task 'kind' are NaN or infinite"):
        measure(task, tiny_bert.local(other_folder), tiny_bert.local(base_folder))


def test_trainable_loss_is_the_mean_cross_entropy_of_the_batch(tmp_path: Path, base_folder: Path) -> None:
    task = tiny_bert.make_task(tmp_path, preprocessing={"max_tokens": 16})
    base_model = tiny_bert.local(base_folder)
    trainable = text_classification.make_trainable(Subject(task, base_model, base_model), Models())
    feature = brute_force_features(base_folder)
    head = torch.stack([feature(prompt) for prompt in tiny_bert.PROMPTS])
    rows = [tiny_bert.make_rows()[index] for index in (0, 7, 3)]
    logits = torch.stack([20.0 * head @ feature(str(row["text"])) for row in rows])
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor([row["label"] for row in rows]))
    assert trainable.n_examples == 12
    torch.testing.assert_close(trainable.loss([0, 7, 3]), wanted)


def test_under_an_own_head_the_loss_is_of_its_logits_in_the_order_of_the_class_names(tmp_path: Path) -> None:
    folder = tiny_bert.make_classifier(tmp_path / "own", ("animal", "color"), seed=5)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertForSequenceClassification.from_pretrained(folder)
    checkpoint = tiny_bert.local(folder)
    task = tiny_bert.make_task(tmp_path, head=OWN, preprocessing={"max_tokens": 16})
    trainable = text_classification.make_trainable(Subject(task, checkpoint, checkpoint), Models())
    rows = [tiny_bert.make_rows()[index] for index in (0, 7)]
    logits = torch.cat([model(**tokenizer(str(row["text"]), return_tensors="pt")).logits for row in rows])
    wanted = torch.nn.functional.cross_entropy(logits[:, [1, 0]], torch.tensor([row["label"] for row in rows]))
    torch.testing.assert_close(trainable.loss([0, 7]), wanted)
    assert trainable.head == {"classifier.weight", "classifier.bias"}
