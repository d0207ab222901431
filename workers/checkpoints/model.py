"""Runnable models: a checkpoint folder in Hugging Face layout becomes an encoder or a classifier with its tokenizer.

Loading goes through `from_pretrained`, because some architectures name their modules otherwise than their files do.
Nothing is fetched from a hub, no code of the checkpoint is run, and no weight is left to chance: what is missing, left
over or of another shape is refused by name. How a text becomes a feature is told in workers/evaluators.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

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

Loaded = TypeVar("Loaded")

_UNUSED_PREFIXES = ("pooler.",)  # features are taken before the pooler, so a file without one is complete
_HEADS = frozenset({"classifier", "score"})  # as architectures call the head of a classifier
_MANY = 5  # how many names a message lists
_COUNTED_AT_ONCE = 1024  # texts whose tokens are in memory while they are counted


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

    def count_tokens(self, texts: Sequence[str], *, max_tokens: int) -> list[int]:
        """Return how many tokens `tokenize` makes of each text, without its padding."""
        counts: list[int] = []
        for at in range(0, len(texts), _COUNTED_AT_ONCE):
            some = list(texts[at : at + _COUNTED_AT_ONCE])
            counts += map(len, self.tokenizer(some, truncation=True, max_length=max_tokens)["input_ids"])
        return counts

    @property
    def embedding_parameters(self) -> frozenset[str]:
        """Names of the parameters that embed the input: the table of tokens and what stands beside it.

        BERT keeps the table in a module `embeddings` with positions and a norm; where the table stands among the layers
        (GPT-2's `wte`, T5's `shared`), it is the only one.
        """
        table = self.module.get_input_embeddings()
        path = next(name for name, module in self.module.named_modules() if module is table)
        parent = path.rpartition(".")[0]
        scope = parent if "embed" in parent.rpartition(".")[2] else path
        return frozenset(name for name, _ in self.module.named_parameters() if name.startswith(f"{scope}."))


@dataclass(frozen=True)
class Classifier(Encoder):
    """A model with its own classification head; `labels` are the names of its logits, in order."""

    labels: tuple[str, ...]


class Models:
    """The runnable models of one job on one device: each checkpoint is loaded once in each form."""

    def __init__(self, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._loaded: dict[tuple[object, str], Any] = {}  # Any: each loader has a type of its own

    @property
    def device(self) -> torch.device:
        """Where the models lie."""
        return self._device

    def open(self, checkpoint: LocalCheckpoint, load: Callable[[LocalCheckpoint, torch.device], Loaded]) -> Loaded:
        """Return what `load(checkpoint, device)` makes of a checkpoint: the same object for the same content.

        Raises: ModelNotRunnable when the files do not make such a model.
        """
        key = (load, checkpoint.manifest.digest)
        if key not in self._loaded:
            self._loaded[key] = load(checkpoint, self._device)
        found: Loaded = self._loaded[key]
        return found

    def forget(self, checkpoint: LocalCheckpoint) -> None:
        """Drop a checkpoint that is not measured any more."""
        self._loaded = {key: model for key, model in self._loaded.items() if key[1] != checkpoint.manifest.digest}


def load_encoder(checkpoint: LocalCheckpoint, device: torch.device) -> Encoder:
    """Load a checkpoint's encoder afresh: a fine-tuner changes the one it gets.

    Raises: ModelNotRunnable when the files do not make an encoder with a tokenizer.
    """
    module = load_module(AutoModel, checkpoint, device)
    _refuse_other_than_text_encoder(module)
    tokenizer = load_tokenizer(checkpoint, n_embedded=count_embedded(module))
    return Encoder(module, tokenizer, max_tokens_of(module, tokenizer))


def load_classifier(checkpoint: LocalCheckpoint, device: torch.device) -> Classifier:
    """Load a checkpoint's model with its own classification head.

    Raises: ModelNotRunnable when the files do not make a classifier with a tokenizer.
    """
    module = load_module(AutoModelForSequenceClassification, checkpoint, device)
    tokenizer = load_tokenizer(checkpoint, n_embedded=count_embedded(module))
    return Classifier(module, tokenizer, max_tokens_of(module, tokenizer), class_names(module))


def class_names(module: PreTrainedModel) -> tuple[str, ...]:
    """Return the names of a classifier's logits, in order."""
    names = {int(index): str(name) for index, name in (module.config.id2label or {}).items()}
    return tuple(name for _, name in sorted(names.items()))


def head_parameters(module: torch.nn.Module) -> frozenset[str]:
    """Return the names of the parameters of a classifier's own head.

    Raises: ModelNotRunnable for a model whose head cannot be told from its body.
    """
    names = [name for name, _ in module.named_parameters()]
    if getattr(module, "base_model", module) is module:  # CLIP and its kin keep the parts of the body beside the head
        found = frozenset(name for name in names if name.split(".", 1)[0] in _HEADS)
    else:
        prefix = f"{getattr(module, 'base_model_prefix', '')}."
        found = frozenset(name for name in names if not name.startswith(prefix))
    if not found:
        raise ModelNotRunnable(
            f"The checkpoint is a {type(module).__name__}, whose head cannot be told from its body; expected one named "
            f"{' or '.join(sorted(_HEADS))}. Make a task with another head."
        )
    return found


def count_embedded(module: PreTrainedModel) -> int:
    """Return the number of tokens that a model of texts has embeddings for."""
    return int(module.get_input_embeddings().get_parameter("weight").shape[0])


def load_module(factory: Any, checkpoint: LocalCheckpoint, device: torch.device) -> PreTrainedModel:
    """Load a checkpoint as the class that a factory chooses, in float32 and evaluation mode, without gradients.

    Raises: ModelNotRunnable when config and weights do not fit each other.
    """
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
            f"{without_path(error, checkpoint.path)}. Check its config.json against its weights."
        ) from error
    _refuse_wrong_weights(module, loading)
    module.requires_grad_(requires_grad=False)
    return module.eval().to(device)  # type: ignore[no-any-return]  # from_pretrained is untyped


def _from_pretrained(factory: Any, checkpoint: LocalCheckpoint) -> Any:  # a module, and how it was loaded: untyped
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    options: dict[str, Any] = {
        "use_safetensors": True,
        "dtype": torch.float32,
        "ignore_mismatched_sizes": True,  # so that they are listed by name and refused below
        "output_loading_info": True,
    }
    if not isinstance(checkpoint, HeldCheckpoint):
        return factory.from_pretrained(checkpoint.path, **local, **options)
    config = AutoConfig.from_pretrained(checkpoint.path, **local)
    with torch.device("meta"):  # the class alone is wanted: a factory takes no tensors in place of a folder
        kind = type(factory.from_config(config, trust_remote_code=False))
    return kind.from_pretrained(None, config=config, state_dict=dict(checkpoint.tensors), **options)


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


def load_tokenizer(
    checkpoint: LocalCheckpoint, *, n_embedded: int, needs_padding: bool = True
) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer; n_embedded: tokens that the model has embeddings for.

    Raises: ModelNotRunnable where there is none, or one that does not fit.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # as above
        raise ModelNotRunnable(
            f"The checkpoint's tokenizer cannot be loaded: {without_path(error, checkpoint.path)}. Register the "
            "tokenizer's files (tokenizer.json, tokenizer_config.json) beside the weights."
        ) from error
    _refuse_missing_vocabulary(checkpoint, tokenizer)
    if len(tokenizer) > n_embedded:
        raise ModelNotRunnable(
            f"The tokenizer has {len(tokenizer)} tokens, the model embeds {n_embedded}. Register the tokenizer that "
            "belongs to these weights."
        )
    if needs_padding and tokenizer.pad_token is None:
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


def max_tokens_of(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
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


def without_path(error: Exception, path: Path) -> str:
    """Return what an error says on one line, without the place of the files."""
    text = " ".join(str(error).replace(str(path), "the checkpoint").split())
    return text[:400].rstrip(". ") or type(error).__name__
