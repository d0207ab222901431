"""Answers against brute force: one text at a time, token by token, unpadded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5ForConditionalGeneration

from app.domain.errors import HeadMismatch, InvalidDataset, NotFinite
from app.domain.tasks import LocalTask, Measurement, OwnHead
from tests.workers import tiny_bert, tiny_language
from workers.checkpoints.model import Models
from workers.evaluators import text2text
from workers.model_contract import Subject

TEXTS = (*tiny_bert.COLORS, *tiny_bert.ANIMALS)
NEW = 4  # tokens of an answer


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.make_t5(tmp_path_factory.mktemp("t5") / "t5", seed=3)


def answer_greedily(folder: Path, text: str) -> str:
    model, tokenizer = T5ForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given, answer = tokenizer(text, return_tensors="pt")["input_ids"], [0]
    for _ in range(NEW):
        with torch.no_grad():
            logits = model(input_ids=given, decoder_input_ids=torch.tensor([answer])).logits[0, -1]
        answer.append(int(logits.argmax()))
        if answer[-1] == 1:
            break
    return str(tokenizer.decode(answer, skip_special_tokens=True))


@pytest.fixture(scope="module")
def answers(t5: Path) -> list[str]:
    return [answer_greedily(t5, text) for text in TEXTS]


def make_task(folder: Path, rows: list[dict[str, Any]], metric: str = "exact_match", **changes: Any) -> LocalTask:
    files = {split: tiny_bert.write_rows(folder / f"{split}.jsonl", rows) for split in ("train", "test")}
    fields = {"kind": "text2text", "classes": (), "head": OwnHead(), "metric": metric, **changes}
    preprocessing = {"max_new_tokens": NEW, **fields.pop("preprocessing", {})}
    return tiny_bert.as_task(files, preprocessing=preprocessing, **fields)


def measure(task: LocalTask, folder: Path) -> Measurement:
    checkpoint = tiny_bert.local(folder)
    subject = Subject(task, checkpoint, checkpoint)
    (found,) = text2text.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    return found


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_answers_are_greedy_whatever_the_batch(tmp_path: Path, t5: Path, answers: list[str], batch_size: int) -> None:
    wanted = [answer if index % 3 else "none of it" for index, answer in enumerate(answers)]
    rows = [{"text": text, "label": answer} for text, answer in zip(TEXTS, wanted, strict=True)]
    found = measure(make_task(tmp_path, rows, preprocessing={"batch_size": batch_size}), t5)
    assert len(set(answers)) > 2  # the texts matter
    assert (found.name, found.n, found.details.n_correct) == ("exact_match", 12, 8)


def test_classes_are_answered_by_name(tmp_path: Path, t5: Path, answers: list[str]) -> None:
    names = tuple(sorted({answer.strip().casefold() for answer in answers}))
    rows = [{"text": text, "label": index % len(names)} for index, text in enumerate(TEXTS)]
    hits = sum(names[index % len(names)] == answer.strip().casefold() for index, answer in enumerate(answers))
    found = measure(make_task(tmp_path, rows, "matthews", classes=names), t5)
    assert (found.name, found.unit, found.details.n_correct) == ("matthews", "correlation", hits)
    assert [row.name for row in found.details.per_class] == list(names)


def test_a_metric_of_classes_needs_classes(tmp_path: Path, t5: Path) -> None:
    task = make_task(tmp_path, [{"text": "red", "label": "red"}], "f1")
    with pytest.raises(HeadMismatch, match="scored with f1, which needs classes"):
        measure(task, t5)


def test_an_answer_that_is_no_text_is_refused(tmp_path: Path, t5: Path) -> None:
    with pytest.raises(InvalidDataset, match="line 1: column 'label' holds a list, expected the answer"):
        measure(make_task(tmp_path, [{"text": "red", "label": ["red"]}]), t5)


def test_a_model_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    folder = tiny_language.make_t5(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["decoder.final_layer_norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match="logits are NaN or infinite"):
        measure(make_task(tmp_path, [{"text": "red", "label": "red"}]), folder)


def test_trainable_loss_is_the_mean_over_the_answers_tokens(tmp_path: Path, t5: Path) -> None:
    rows = [{"text": "red", "label": "cat"}, {"text": "the dog", "label": "a blue bird"}]
    checkpoint = tiny_bert.local(t5)
    trainable = text2text.make_trainable(Subject(make_task(tmp_path, rows), checkpoint, checkpoint), Models())
    model, tokenizer = T5ForConditionalGeneration.from_pretrained(t5), AutoTokenizer.from_pretrained(t5)
    model.config.decoder_start_token_id = 0
    total, n_tokens = 0.0, 0
    for row in rows:
        labels = tokenizer(row["label"], return_tensors="pt")["input_ids"]
        loss = model(input_ids=tokenizer(row["text"], return_tensors="pt")["input_ids"], labels=labels).loss
        total, n_tokens = total + loss.item() * labels.numel(), n_tokens + labels.numel()
    assert trainable.loss([0, 1]).item() == pytest.approx(total / n_tokens, rel=1e-5)
    assert trainable.embeddings == {"shared.weight"}
