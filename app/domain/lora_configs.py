"""What an adapter's `adapter_config.json` says, read with suspicion: what changes the weights is understood or refused.

PEFT's field names; scaling is alpha / r, with rsLoRA alpha / sqrt(r), per module by the patterns.
"""

import re
from collections.abc import Mapping
from math import isfinite, sqrt
from typing import Any, NoReturn

from app.domain.checkpoints import LoraConfig
from app.domain.errors import AdapterUnsupported, CheckpointInvalid

CONFIG_FILE = "adapter_config.json"
MAX_RANK = 1 << 20
MAX_PATTERNS = 10_000
MAX_PATTERN_LENGTH = 512
MAX_QUANTIFIERS = 6

# Fields that say how an adapter was trained or is run, not what it computes; any value is taken.
HARMLESS = frozenset({
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "task_type", "use_rslora",
})  # fmt: skip

# Fields that change what an adapter computes in a way that is no sum of the base's weight and a low-rank product.
REFUSED = {
    "use_dora": "DoRA rescales each column of the adapted weight by a learned magnitude, so it is no low-rank sum. "
    "Merge it into its base with PEFT (merge_and_unload), save that, and register the dense model",
    "use_qalora": "QALoRA adapts pooled inputs of a quantized base. Merge it with PEFT and register the dense model",
    "lora_bias": "a bias on lora_B is not supported. Train with lora_bias=false, or merge it with PEFT",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only, which no weight can express",
    "trainable_token_indices": "trained rows of an embedding are not supported. Train with modules_to_save, or merge "
    "it with PEFT and register the dense model",
    "target_parameters": "LoRA on bare parameters (experts) is not supported. Merge it with PEFT and register the "
    "dense model",
    "layer_replication": "it repeats layers of the base, so its tensors are not the base's. Merge it with PEFT and "
    "register the dense model",
    "arrow_config": "a router chooses among adapters at run time, which no weight can express",
}
# Initializations that take something out of the base's own weights: the adapter belongs to the changed base.
BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "gralora")


def parse_lora_config(document: Mapping[str, Any]) -> LoraConfig:
    """Return the facts of an `adapter_config.json`.

    Raises: AdapterUnsupported naming the field, why, and what to do; CheckpointInvalid for a malformed field.
    """
    _refuse_other_kinds(document)
    rank = _read_rank(document.get("r", 8), "r")
    return LoraConfig(
        rank=rank,
        alpha=_read_number(document.get("lora_alpha", 8), "lora_alpha"),
        use_rslora=_read_flag(document, "use_rslora"),
        fan_in_fan_out=_read_flag(document, "fan_in_fan_out"),
        rank_pattern={key: _read_rank(value, key) for key, value in _read_patterns(document, "rank_pattern").items()},
        alpha_pattern={
            key: _read_number(value, key) for key, value in _read_patterns(document, "alpha_pattern").items()
        },
        modules_to_save=_read_names(document, "modules_to_save"),
        bias=str(document.get("bias") or "none"),
        base_model_name=_read_base_name(document),
        task_type=_read_word(document.get("task_type")),
    )


def rank_of(config: LoraConfig, module: str) -> int:
    """Return the rank that the config gives a module."""
    return config.rank_pattern.get(_match(config.rank_pattern, module), config.rank)


def scaling_of(config: LoraConfig, module: str) -> float:
    """Return the factor on a module's product B A: alpha / r, with rsLoRA alpha / sqrt(r)."""
    rank = rank_of(config, module)
    alpha = config.alpha_pattern.get(_match(config.alpha_pattern, module), config.alpha)
    return alpha / sqrt(rank) if config.use_rslora else alpha / rank


def _match(patterns: Mapping[str, object], module: str) -> str:
    """Return the first pattern that fits the end of the module's path, as PEFT finds it; none: the path itself."""
    return next((key for key in patterns if re.match(rf"(.*\.)?({key})$", module)), module)


def _refuse_other_kinds(document: Mapping[str, Any]) -> None:
    kind = str(document.get("peft_type", "")).upper()
    if kind != "LORA":
        raise AdapterUnsupported(
            f"{CONFIG_FILE}: found peft_type {kind[:40]!r}, expected 'LORA'. Merge the adapter into its base with PEFT "
            "(merge_and_unload), save that, and register the dense model."
        )
    for name, reason in REFUSED.items():
        if document.get(name):
            raise AdapterUnsupported(f"{CONFIG_FILE}: found {name}: {reason}.")
    start = document.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(BASE_CHANGING):
        raise AdapterUnsupported(
            f"{CONFIG_FILE}: found init_lora_weights {start[:40]!r}, which changes the base model's own weights, so "
            "the adapter does not belong to the base as published. Convert it with PEFT's "
            "save_pretrained(path_initial_model_for_weight_conversion=…), which writes a plain LoRA."
        )
    unknown = sorted(name for name, value in document.items() if value and name not in HARMLESS)
    if unknown:
        raise AdapterUnsupported(
            f"{CONFIG_FILE}: found {unknown[0][:80]!r}, which this release does not know and which may change what the "
            "adapter computes. Remove the field if it does not; else merge the adapter with PEFT and register the "
            "dense model."
        )


def _read_rank(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_RANK:
        _refuse(name, value, f"a whole number from 1 to {MAX_RANK}")
    return value


def _read_number(value: object, name: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not isfinite(value):
        _refuse(name, value, "a finite number")
    return float(value)


def _read_flag(document: Mapping[str, Any], name: str) -> bool:
    value = document.get(name) or False
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value


def _read_names(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = document.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        _refuse(name, value, "a list of module names")
    return tuple(value)


def _read_patterns(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the patterns; they are regular expressions, so those that could take forever are refused."""
    value = document.get(name) or {}
    if not isinstance(value, dict) or len(value) > MAX_PATTERNS:
        _refuse(name, value, f"a mapping of at most {MAX_PATTERNS} module patterns to numbers")
    for pattern in value:
        is_costly = re.search(r"\)[*+?{]", pattern) or len(re.findall(r"(?<!\\)[*+{]", pattern)) > MAX_QUANTIFIERS
        if is_costly or len(pattern) > MAX_PATTERN_LENGTH:
            _refuse(name, pattern, "a pattern without repeated groups, as module names are")
        try:
            re.compile(pattern)
        except re.error:
            _refuse(name, pattern, "a regular expression")
    return value


def _read_base_name(document: Mapping[str, Any]) -> str | None:
    value = document.get("base_model_name_or_path")
    return value[:512] if isinstance(value, str) and value.isprintable() else None


def _read_word(value: object) -> str | None:
    return value if isinstance(value, str) and value.isidentifier() and len(value) <= 64 else None


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise CheckpointInvalid(f"{CONFIG_FILE}: found {ascii(value)[:120]} as {name[:80]}, expected {expected}.")
