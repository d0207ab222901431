"""A BERT of a few hundred parameters with a real tokenizer, and tasks that it can learn: made in a temporary folder."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

from app.domain.checkpoints import LocalCheckpoint
from app.domain.jobs import Progress
from app.domain.tasks import DataFile, Head, LabelPromptsHead, LocalTask, TaskSpec
from workers.pipelines.importing import import_checkpoint

WORDS = ("red", "green", "blue", "cat", "dog", "bird", "a", "the", "is", "runs")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CLASSES = ("color", "animal")
PROMPTS = ("red green", "cat dog")
COLORS = ("red is a", "the green", "blue", "a red the", "green is blue", "the blue is red")
ANIMALS = ("cat runs", "the dog", "a bird runs", "dog", "the cat is a cat", "bird is the dog")


def make_config(**changes: object) -> BertConfig:
    """Return the configuration of a BERT with one layer of width 8."""
    sizes: dict[str, object] = {
        "vocab_size": len(SPECIAL) + len(WORDS),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
    }
    return BertConfig(**{**sizes, **changes})  # type: ignore[arg-type]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with BERT's special tokens."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=16,
    )


def make_encoder(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
    """Write a BERT without a head, and its tokenizer."""
    torch.manual_seed(seed)
    model = BertModel(make_config(**changes))
    model.to(dtype=dtype).save_pretrained(folder)  # type: ignore[call-arg]  # its decorator hides the keyword
    make_tokenizer().save_pretrained(folder)
    return folder


def make_classifier(folder: Path, labels: Sequence[str], *, seed: int = 0) -> Path:
    """Write a BERT with a classification head for the labels, and its tokenizer."""
    torch.manual_seed(seed)
    config = make_config(id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)})
    BertForSequenceClassification(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_language_model(folder: Path, *, seed: int = 0, max_shard_size: str = "50GB") -> Path:
    """Write a BERT with a masked language model's head, whose file names begin with `bert.`, and its tokenizer."""
    torch.manual_seed(seed)
    BertForMaskedLM(make_config()).save_pretrained(folder, max_shard_size=max_shard_size)
    make_tokenizer().save_pretrained(folder)
    return folder


def local(path: Path) -> LocalCheckpoint:
    """Return the folder as a checkpoint that a pipeline takes."""
    return LocalCheckpoint(id=f"ckpt_{path.name}", path=path, manifest=import_checkpoint(path, ignore))


def write_rows(path: Path, rows: Sequence[object]) -> Path:
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def make_rows() -> list[dict[str, object]]:
    """Return texts about colors (label 0) and animals (label 1)."""
    rows: list[dict[str, object]] = [{"text": text, "label": 0} for text in COLORS]
    return rows + [{"text": text, "label": 1} for text in ANIMALS]


def make_task(folder: Path, *, head: Head | None = None, **changes: Any) -> LocalTask:
    """Write the splits of the task 'color or animal' and return it; `changes` are fields of its TaskSpec."""
    rows = make_rows()
    files = {
        "train": write_rows(folder / "train.jsonl", rows),
        "validation": write_rows(folder / "validation.jsonl", rows[::2]),
        "test": write_rows(folder / "test.jsonl", rows[1::2]),
    }
    return as_task(files, head=head, **changes)


def as_task(
    files: dict[str, Path], *, head: Head | None = None, head_weights: Path | None = None, **changes: Any
) -> LocalTask:
    """Return the files as a task of two classes."""
    fields: dict[str, object] = {
        "name": "kind",
        "kind": "text-classification",
        "dataset": {split: data_file(path) for split, path in files.items()},
        "classes": CLASSES,
        "head": head or LabelPromptsHead(kind="label_prompts", prompts=PROMPTS),
        "head_weights": None if head_weights is None else data_file(head_weights),
    }
    spec = TaskSpec.model_validate({**fields, **changes})
    return LocalTask(id="task_kind", spec=spec, files=files, head_weights=head_weights)


def data_file(path: Path) -> DataFile:
    """Return the file as a task records it."""
    content = path.read_bytes()
    return DataFile(uri=path.as_uri(), sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def ignore(_progress: Progress) -> None:
    """Take a progress report and do nothing."""


def ignore_examples(_done: int, _total: int) -> None:
    """Take a count of examples and do nothing."""
