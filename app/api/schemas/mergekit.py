"""The schema of a merge as mergekit writes it, with examples; app/domain/mergekit reads and refuses in detail."""

from typing import Any

from app.domain.mergekit.methods import BY_NAME
from app.domain.mergekit.reading import BESIDE, DTYPES

Schema = dict[str, Any]  # JSON Schema

_ONE: Schema = {"anyOf": [{"type": "number"}, {"type": "boolean"}]}
_VALUE: Schema = {"anyOf": [*_ONE["anyOf"], {"type": "array", "items": {"type": "number"}, "minItems": 1}]}
_CONDITION: Schema = {
    "type": "object",
    "properties": {"filter": {"type": ["string", "null"]}, "value": _VALUE},
    "required": ["value"],
    "additionalProperties": False,
}
_SETTINGS: Schema = {
    "type": "object",
    "additionalProperties": {
        "anyOf": [*_VALUE["anyOf"], _CONDITION, {"type": "array", "items": _CONDITION, "minItems": 1}]
    },
    "description": "mergekit's parameters: a number, a list interpolated over the layers, or conditions by filter.",
}
_REF: Schema = {"type": "string", "minLength": 1, "description": "The ref of a checkpoint."}

_TOKENIZER: Schema = {
    "type": "string",
    "description": "`base`, or the ref of the base model, else of the first model: its tokenizer travels along.",
}


def merge_schema() -> Schema:
    """Return the schema of a document."""
    model = _object({"model": _REF, "parameters": _SETTINGS}, required=["model"])
    bound: Schema = {"type": "integer", "minimum": 0}
    source = _object(
        {
            "model": _REF,
            "layer_range": {"type": "array", "items": bound, "minItems": 2, "maxItems": 2},
            "parameters": _SETTINGS,
        },
        required=["model", "layer_range"],
    )
    one_slice = _object(
        {"sources": {"type": "array", "items": source, "minItems": 1}, "parameters": _SETTINGS}, required=["sources"]
    )
    named: Schema = {
        "models": {"type": "array", "items": model, "minItems": 1},
        "slices": {"type": "array", "items": one_slice, "minItems": 1},
    }
    module = _object({**named, "parameters": _SETTINGS}, required=[]) | {
        "oneOf": [{"required": [name]} for name in named]
    }
    dtype: Schema = {"type": "string", "enum": [*DTYPES, *(f"torch.{name}" for name in DTYPES)]}
    document = _object(
        {
            "merge_method": {"type": "string", "enum": list(BY_NAME)},
            "base_model": _REF,
            **named,
            "modules": {
                "type": "object",
                "additionalProperties": module,
                "minProperties": 1,
                "maxProperties": 1,
                "description": "One module: its models or slices.",
            },
            "parameters": _SETTINGS,
            "dtype": dtype,
            "out_dtype": dtype,
            "tokenizer_source": _TOKENIZER,
            "tokenizer": _object({"source": _TOKENIZER}, required=[]),
            "amalgam": _object({name: {} for name in BESIDE}, required=[])
            | {"description": "What mergekit has no word for, as in the JSON body; mergekit does not look at it."},
        },
        required=["merge_method"],
    )
    return {
        **document,
        "title": "MergekitMerge",
        "description": "A merge as mergekit writes it, whose models are refs. docs/mergekit.md says what becomes what.",
        "oneOf": [{"required": [name]} for name in (*named, "modules")],
        "examples": [EXAMPLE],
    }


EXAMPLE: Schema = {
    "merge_method": "ties",
    "base_model": "minilm",
    "models": [
        {"model": "tickets-expert", "parameters": {"weight": 1.0}},
        {
            "model": "reviews-expert@2",
            "parameters": {"weight": [{"filter": "key", "value": 0.5}, {"value": 0.8}]},
        },
    ],
    "parameters": {"density": 0.5, "normalize": True},
    "dtype": "float32",
    "amalgam": {"output": {"name": "helpdesk"}, "evaluate": ["tickets"]},
}


def _object(properties: Schema, *, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
