"""Perplexity against brute force: every token scored by a run of its own on exactly the tokens before it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from app.domain.errors import InvalidDataset, InvalidParameters, NotFinite
from app.domain.tasks import LocalTask, Measurement, OwnHead
from tests.workers import tiny_bert, tiny_language
from workers.checkpoints.model import Models
from workers.evaluators import perplexity
from workers.model_contract import Subject

TEXTS = ("red is a green bird the dog is the cat runs", "blue", "the cat is a cat")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_language.make_gpt2(tmp_path_factory.mktemp("gpt2") / "gpt2", seed=3)


def make_task(folder: Path, metric: str = "nll_per_token", texts: tuple[str, ...] = TEXTS, **cut: Any) -> LocalTask:
    rows = [{"text": text} for text in texts]
    files = {split: tiny_bert.write_rows(folder / f"{split}.jsonl", rows) for split in ("train", "test")}
    preprocessing = {"max_tokens": 12, "stride": 6, **cut}
    return tiny_bert.as_task(
        files, kind="perplexity", classes=(), head=OwnHead(), metric=metric, preprocessing=preprocessing
    )


def measure(task: LocalTask, folder: Path) -> Measurement:
    checkpoint = tiny_bert.local(folder)
    subject = Subject(task, checkpoint, checkpoint)
    (found,) = perplexity.measure.measure(subject, "test", Models(), tiny_bert.ignore_examples)
    return found


def score(folder: Path, *, window: int, stride: int, has_bos: bool = True) -> tuple[float, int]:
    """Return the summed -log p, and the number of tokens, with the context that windows leave each token."""
    model, tokenizer = GPT2LMHeadModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, n_tokens = 0.0, 0
    for text in TEXTS:
        tokens = [3] * has_bos + tokenizer(text)["input_ids"]
        begin = 0
        for place in range(1, len(tokens)):
            while place >= begin + window:
                begin += min(stride, window - 1)
            with torch.no_grad():
                logits = model(torch.tensor([tokens[begin:place]])).logits[0, -1]
            total -= float(logits.log_softmax(-1)[tokens[place]])
            n_tokens += 1
    return total, n_tokens


@pytest.mark.parametrize("batch_size", [1, 2, 64])
@pytest.mark.parametrize(("window", "stride"), [(12, 6), (5, 1), (5, 3), (4, 4), (2, 1)])
def test_every_token_is_scored_once_with_what_is_before_it(
    tmp_path: Path, gpt2: Path, window: int, stride: int, batch_size: int
) -> None:
    found = measure(make_task(tmp_path, max_tokens=window, stride=stride, batch_size=batch_size), gpt2)
    total, n_tokens = score(gpt2, window=window, stride=stride)
    assert found.value == pytest.approx(total / n_tokens, rel=1e-5)
    assert found.details.counts == {"n_tokens": n_tokens, "n_bytes": sum(map(len, TEXTS))}
    assert (found.n, found.higher_is_better, found.unit) == (3, False, "nats")


def test_perplexity_and_bits_follow_from_the_loss(tmp_path: Path, gpt2: Path) -> None:
    total, n_tokens = score(gpt2, window=12, stride=6)
    found = measure(make_task(tmp_path, "perplexity"), gpt2)
    assert found.value == pytest.approx(math.exp(total / n_tokens), rel=1e-5)
    assert found.details.other == {
        "nll_per_token": pytest.approx(total / n_tokens, rel=1e-5),
        "bits_per_byte": pytest.approx(total / math.log(2) / sum(map(len, TEXTS)), rel=1e-5),
    }
    assert found.details.interval is not None
    assert found.value is not None
    assert found.details.interval.low < found.value < found.details.interval.high


def test_without_a_first_token_the_text_s_own_first_is_not_scored(tmp_path: Path, gpt2: Path) -> None:
    found = measure(make_task(tmp_path, add_bos=False), gpt2)
    total, n_tokens = score(gpt2, window=12, stride=6, has_bos=False)
    assert n_tokens == found.details.counts["n_tokens"]
    assert found.value == pytest.approx(total / n_tokens, rel=1e-5)


def test_texts_of_one_token_alone_are_refused(tmp_path: Path, gpt2: Path) -> None:
    with pytest.raises(InvalidDataset, match="no text has two tokens"):
        measure(make_task(tmp_path, texts=("red", "cat"), add_bos=False), gpt2)


@pytest.mark.parametrize(
    ("cut", "message"),
    [({"max_tokens": 13}, "the model has positions for 12"), ({"max_tokens": 4}, "stride is 6, more than max_tokens")],
)
def test_windows_that_do_not_fit_are_refused(tmp_path: Path, gpt2: Path, cut: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameters, match=message):
        measure(make_task(tmp_path, **cut), gpt2)


def test_a_model_that_gives_no_numbers_is_refused(tmp_path: Path) -> None:
    folder = tiny_language.make_gpt2(tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NotFinite, match="loss on task 'kind' is nan per token"):
        measure(make_task(tmp_path), folder)


def test_trainable_loss_is_the_mean_over_the_tokens_of_windows(tmp_path: Path, gpt2: Path) -> None:
    checkpoint = tiny_bert.local(gpt2)
    trainable = perplexity.make_trainable(Subject(make_task(tmp_path), checkpoint, checkpoint), Models())
    total, n_tokens = score(gpt2, window=12, stride=12)
    assert trainable.n_examples == 3
    assert trainable.loss([0, 1, 2]).item() == pytest.approx(total / n_tokens, rel=1e-5)
    assert trainable.embeddings == {"transformer.wte.weight"}
