"""What config.json says that matters to merging: the architecture, the vocabulary, which tensors are one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.domain.errors import CheckpointInvalid
from workers.checkpoints.files import read_json

CONFIG_FILE = "config.json"
MAX_CONFIG_BYTES = 16_000_000
MAX_WORD = 128  # characters of an architecture or a model type
MAX_VOCAB_SIZE = 2**31
DTYPE_KEYS = ("dtype", "torch_dtype")  # transformers 5 and 4

_OUTPUT = "lm_head.weight"
# Groups of names that transformers ties where the config says so, the name it stores first.
_TIED_SUFFIXES = (
    ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"),  # T5, BART
    ("embed_tokens.weight", "lm_head.weight"),  # Llama and its kin
    ("wte.weight", "lm_head.weight"),  # GPT-2
    ("word_embeddings.weight", "lm_head.weight"),  # Bloom, Falcon
    ("embed_in.weight", "embed_out.weight"),  # GPT-NeoX
    ("embeddings.word_embeddings.weight", "predictions.decoder.weight"),  # BERT
    ("predictions.bias", "predictions.decoder.bias"),
    ("embeddings.word_embeddings.weight", "lm_head.decoder.weight"),  # RoBERTa
    ("lm_head.bias", "lm_head.decoder.bias"),
    ("embeddings.word_embeddings.weight", "vocab_projector.weight"),  # DistilBERT
)


@dataclass(frozen=True)
class ModelConfig:
    """The few facts of a config.json that a manifest records."""

    architecture: str | None = None
    model_type: str | None = None
    vocab_size: int | None = None
    ties_embeddings: bool | None = None  # None: not said


def read_config(root: Path) -> ModelConfig:
    """Return the facts of the folder's config.json; nothing is known where there is none.

    Raises: CheckpointInvalid when it is not a JSON object, or beyond 16 MB.
    """
    path = root / CONFIG_FILE
    if not path.is_file():
        return ModelConfig()
    document = read_json(path, max_bytes=MAX_CONFIG_BYTES)
    inner = document.get("text_config")
    text = {**inner, **document} if isinstance(inner, dict) else document
    architectures = document.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    model_type, vocab_size, ties = (text.get(key) for key in ("model_type", "vocab_size", "tie_word_embeddings"))
    return ModelConfig(
        architecture=_word(architecture),
        model_type=_word(model_type),
        vocab_size=vocab_size if type(vocab_size) is int and 0 <= vocab_size <= MAX_VOCAB_SIZE else None,
        ties_embeddings=ties if isinstance(ties, bool) else None,
    )


def find_tied(config: ModelConfig, names: Sequence[str], blake3_of: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Return the groups of tensor names that are one tensor, a stored name first.

    Names of the same group whose stored bytes differ are not tied, whatever the config says: they are merged apart.
    """
    if config.ties_embeddings is False:
        return ()
    groups: list[tuple[str, ...]] = []
    grouped: set[str] = set()
    for suffixes in _TIED_SUFFIXES:
        matches = [[name for name in names if _ends_with(name, suffix) and name not in grouped] for suffix in suffixes]
        if any(len(found) > 1 for found in matches):  # several towers: which belongs to which is not ours to guess
            continue
        stored = [name for found in matches for name in found]
        if not stored or len({blake3_of[name] for name in stored}) != 1:
            continue
        is_output_left_out = _OUTPUT in suffixes and _OUTPUT not in stored and config.ties_embeddings is True
        group = (*stored, _OUTPUT) if is_output_left_out else tuple(stored)
        if len(group) > 1:
            groups.append(group)
            grouped.update(group)
    return tuple(groups)


def with_dtype(config: bytes, dtype: str) -> bytes:
    """Return a config.json whose dtype entry (either name) is `dtype`, all else as it was.

    Raises: CheckpointInvalid when it is not a JSON object.
    """
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"{CONFIG_FILE}: found text that is not JSON ({str(error)[:200]}).") from None
    if not isinstance(document, dict):
        raise CheckpointInvalid(f"{CONFIG_FILE}: found a JSON {type(document).__name__}, expected an object.")
    present = [key for key in DTYPE_KEYS if key in document] or [DTYPE_KEYS[1]]
    document.update(dict.fromkeys(present, dtype))
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _word(value: object) -> str | None:
    """Return a class name or the like. Nothing beyond that is recorded: it reaches tables and pages."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_WORD:
        return None
    return value if value.isascii() and value.isprintable() else None


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
