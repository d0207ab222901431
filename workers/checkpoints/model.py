"""Runnable models: a checkpoint folder in Hugging Face layout becomes an encoder or a classifier with its tokenizer.

Loading goes through `from_pretrained`, because some architectures name their modules otherwise than their files do.
Nothing is fetched from a hub, no code of the checkpoint is run, and no weight is left to chance: what is missing, left
over or of another shape is refused by name. How a text becomes a feature is told in workers/evaluators.
"""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not survive a fork

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from app.domain.checkpoints import LocalCheckpoint
from app.domain.errors import ModelNotRunnable
from workers.checkpoints.held import HeldCheckpoint

transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

_UNUSED_PREFIXES = ("pooler.",)  # features are taken before the pooler, so a file without one is complete
_MANY = 5  # how many names a message lists


@dataclass(frozen=True)
class Encoder:
    """A model without a head, in float32 and evaluation mode, and the tokenizer that belongs to it."""

    module: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int  # most tokens that the model has positions for

    def tokenize(self, texts: Sequence[str], *, max_tokens: int) -> dict[str, Tensor]:
        """Return the model's input for a batch of texts, each [n, t], on its device; longer texts are cut."""
        batch = self.tokenizer(list(texts), padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        takes = inspect.signature(self.module.forward).parameters  # a tokenizer may make more than its model takes
        return {name: tensor.to(self.module.device) for name, tensor in batch.items() if name in takes}

    @property
    def embedding_parameters(self) -> frozenset[str]:
        """Names of the parameters that embed the input: the table of tokens and what stands beside it.

        BERT keeps the table in a module `embeddings` with positions and a norm; where the table stands alone at the
        top (GPT-2's `wte`), it is the only one.
        """
        table = self.module.get_input_embeddings()
        path = next(name for name, module in self.module.named_modules() if module is table)
        scope = path.rpartition(".")[0] or path
        return frozenset(name for name, _ in self.module.named_parameters() if name.startswith(f"{scope}."))


@dataclass(frozen=True)
class Classifier(Encoder):
    """A model with its own classification head; `labels` are the names of its logits, in order."""

    labels: tuple[str, ...]


class Models:
    """The runnable models of one job: each checkpoint is loaded once, on one device."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._encoders: dict[str, Encoder] = {}
        self._classifiers: dict[str, Classifier] = {}

    @property
    def device(self) -> torch.device:
        """Where the models lie."""
        return self._device

    def encoder(self, checkpoint: LocalCheckpoint) -> Encoder:
        """Return the checkpoint's encoder; a classification head in its files is left aside.

        Raises: ModelNotRunnable when the files do not make an encoder with a tokenizer.
        """
        key = checkpoint.manifest.digest
        if key not in self._encoders:
            self._encoders[key] = load_encoder(checkpoint, self._device)
        return self._encoders[key]

    def classifier(self, checkpoint: LocalCheckpoint) -> Classifier:
        """Return the checkpoint's model with its own classification head.

        Raises: ModelNotRunnable when the files do not make a classifier with a tokenizer.
        """
        key = checkpoint.manifest.digest
        if key not in self._classifiers:
            self._classifiers[key] = load_classifier(checkpoint, self._device)
        return self._classifiers[key]

    def forget(self, checkpoint: LocalCheckpoint) -> None:
        """Drop a checkpoint that is not measured any more."""
        self._encoders.pop(checkpoint.manifest.digest, None)
        self._classifiers.pop(checkpoint.manifest.digest, None)


def load_encoder(checkpoint: LocalCheckpoint, device: torch.device) -> Encoder:
    """Load a checkpoint's encoder afresh: a fine-tuner changes the one it gets.

    Raises: ModelNotRunnable when the files do not make an encoder with a tokenizer.
    """
    module = _load(AutoModel, checkpoint, device)
    _refuse_other_than_text_encoder(module)
    tokenizer = _load_tokenizer(checkpoint, module)
    return Encoder(module, tokenizer, _max_tokens(module, tokenizer))


def load_classifier(checkpoint: LocalCheckpoint, device: torch.device) -> Classifier:
    """Load a checkpoint's model with its own classification head.

    Raises: ModelNotRunnable when the files do not make a classifier with a tokenizer.
    """
    module = _load(AutoModelForSequenceClassification, checkpoint, device)
    tokenizer = _load_tokenizer(checkpoint, module)
    names = {int(index): str(name) for index, name in (module.config.id2label or {}).items()}
    labels = tuple(name for _, name in sorted(names.items()))
    return Classifier(module, tokenizer, _max_tokens(module, tokenizer), labels)


def _load(factory: Any, checkpoint: LocalCheckpoint, device: torch.device) -> PreTrainedModel:
    # Any: transformers' Auto classes share no type
    if not (checkpoint.path / "config.json").is_file():
        raise ModelNotRunnable(
            "The checkpoint has no config.json, so its architecture is unknown. Register a folder in the Hugging Face "
            "layout (config.json and tokenizer beside the weights) to run it."
        )
    try:
        module, loading = _from_pretrained(factory, checkpoint)
    except MemoryError:
        raise
    except Exception as error:  # the library raises a dozen unrelated classes on a bad config
        raise ModelNotRunnable(
            f"The checkpoint (model_type {checkpoint.manifest.model_type!r}) cannot be loaded: "
            f"{_without_path(error, checkpoint.path)}. Check its config.json against its weights."
        ) from error
    _refuse_wrong_weights(module, loading)
    module.requires_grad_(requires_grad=False)
    return module.eval().to(device)  # type: ignore[no-any-return]  # from_pretrained is untyped


def _from_pretrained(factory: Any, checkpoint: LocalCheckpoint) -> tuple[PreTrainedModel, dict[str, Any]]:
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    options: dict[str, Any] = {
        "use_safetensors": True,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,  # so that they are listed by name and refused below
        "output_loading_info": True,
    }
    if not isinstance(checkpoint, HeldCheckpoint):
        return factory.from_pretrained(checkpoint.path, **local, **options)  # type: ignore[no-any-return]  # untyped
    config = AutoConfig.from_pretrained(checkpoint.path, **local)
    with torch.device("meta"):  # the class alone is wanted: a factory takes no tensors in place of a folder
        kind = type(factory.from_config(config, trust_remote_code=False))
    return kind.from_pretrained(None, config=config, state_dict=dict(checkpoint.tensors), **options)  # type: ignore[no-any-return]


def _refuse_wrong_weights(module: PreTrainedModel, loading: dict[str, Any]) -> None:
    mismatched = sorted(str(entry[0] if isinstance(entry, tuple) else entry) for entry in loading["mismatched_keys"])
    missing = sorted(name for name in loading["missing_keys"] if not _is_unused(module, name))
    unexpected = sorted(name for name in loading["unexpected_keys"] if _is_in_body(module, name))
    for fault, names in (("of another shape", mismatched), ("missing", missing), ("left over", unexpected)):
        if names:
            raise ModelNotRunnable(
                f"The weights do not fit config.json ({type(module).__name__}): {len(names)} tensors are {fault}: "
                f"{list_names(names)}. Register the config.json that belongs to these weights."
            )


def _is_unused(module: PreTrainedModel, name: str) -> bool:
    has_own_head = module.base_model is not module
    return not has_own_head and name.startswith(_UNUSED_PREFIXES)


def _is_in_body(module: PreTrainedModel, name: str) -> bool:
    body = module.base_model
    prefix = f"{module.base_model_prefix}."
    first = name.removeprefix(prefix).split(".", 1)[0]
    return first in dict(body.named_children()) and not name.startswith(_UNUSED_PREFIXES)


def _refuse_other_than_text_encoder(module: PreTrainedModel) -> None:
    takes = inspect.signature(module.forward).parameters
    if module.config.is_encoder_decoder or "input_ids" not in takes or "pixel_values" in takes:
        raise ModelNotRunnable(
            f"The checkpoint is a {type(module).__name__}; expected an encoder of texts (BERT and its kin). Use a "
            "checkpoint of such a model."
        )


def _load_tokenizer(checkpoint: LocalCheckpoint, module: PreTrainedModel) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelNotRunnable(
            f"The checkpoint's tokenizer cannot be loaded: {_without_path(error, checkpoint.path)}. Register the "
            "tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights."
        ) from error
    _refuse_missing_vocabulary(checkpoint, tokenizer)
    n_rows = int(module.get_input_embeddings().get_parameter("weight").shape[0])
    if len(tokenizer) > n_rows:
        raise ModelNotRunnable(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeds {n_rows}. Register the tokenizer that "
            "belongs to these weights."
        )
    if tokenizer.pad_token is None:
        raise ModelNotRunnable(
            "The tokenizer has no padding token, so texts cannot be run in batches. Set pad_token in its "
            "tokenizer_config.json and register the checkpoint again."
        )
    tokenizer.padding_side = "right"  # so that the first token is the first
    return tokenizer


def _refuse_missing_vocabulary(checkpoint: LocalCheckpoint, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the vocabulary came from a file: the library makes an empty one where there is none."""
    names = sorted(set(tokenizer.vocab_files_names.values()))
    if not any((checkpoint.path / name).is_file() for name in names):
        raise ModelNotRunnable(
            f"The checkpoint has no tokenizer; expected one of {', '.join(names)} beside the weights. Register it "
            "again with its tokenizer."
        )


def _max_tokens(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the most tokens of a text; RoBERTa and its kin begin to count after the padding's own row."""
    limit = int(getattr(module.config, "max_position_embeddings", None) or tokenizer.model_max_length)
    for name, table in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(table, torch.nn.Embedding):
            limit = min(limit, table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1))
    return min(limit, tokenizer.model_max_length)


def list_names(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(names[:_MANY]) + more


def _without_path(error: Exception, path: Path) -> str:
    text = " ".join(str(error).replace(str(path), "the checkpoint").split())
    return text[:400].rstrip(". ") or type(error).__name__
