"""The OpenAPI document: what FastAPI makes of the routes, with our problems, and the parameters of every method.

Every operation can answer 400, 413, 422, 500 and 503; those with a body also 415.
"""

import copy
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.dependencies import KEY_WITHOUT_EFFECT
from app.api.mergekit_documents import MEDIA_TYPE
from app.api.problems import Problem, add_response
from app.api.schemas.mergekit import merge_schema
from app.domain.catalog import Catalog, EvaluatorCard, FinetunerCard, MethodCard
from app.domain.errors import (
    AmalgamError,
    BadRequest,
    IdempotencyKeyReused,
    Invalid,
    TooLarge,
    Unavailable,
    UnsupportedMediaType,
)
from app.domain.parameter_checks import with_gradients
from app.domain.recipes import Recipe

Document = dict[str, Any]

VERBS = ("get", "put", "post", "delete", "patch")


def describe(app: FastAPI) -> Document:
    """Return the OpenAPI document of an app, made once."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
            license_info=app.license_info,
        )
        described = _with_mergekit(_with_recipes(_with_problems(document)))
        app.openapi_schema = _with_parameters(described, app.state.wiring.catalog)
    return app.openapi_schema


def _with_problems(document: Document) -> Document:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for ours in ("HTTPValidationError", "ValidationError"):
        schemas.pop(ours, None)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    for path in document["paths"].values():
        for verb in VERBS:
            if verb in path:
                _add_problems(path[verb])
    return document


def _with_parameters(document: Document, catalog: Catalog) -> Document:
    """Say what `parameters` and `preprocessing` may hold: one schema per method, technique and evaluator."""
    schemas = document["components"]["schemas"]
    bodies: tuple[tuple[str, str, Sequence[MethodCard | FinetunerCard | EvaluatorCard]], ...] = (
        ("MergeBody", "parameters", catalog.methods),
        ("FinetuneBody", "parameters", catalog.finetuners),
        ("TaskBody", "preprocessing", catalog.evaluators),
    )
    for body, field, cards in bodies:
        prefix = "finetune_" if body == "FinetuneBody" else ""  # a method and a technique may share a name
        names = [f"{prefix}{card.name}_{field}" for card in cards]
        take = with_gradients if body == "MergeBody" else dict
        schemas.update({name: take(card.parameters) for name, card in zip(names, cards, strict=True)})
        described = schemas[body]["properties"][field]
        arms = [{"$ref": f"#/components/schemas/{name}"} for name in names]
        schemas[body]["properties"][field] = {"anyOf": arms, "title": described["title"], "default": {}}
    return document


def _with_recipes(document: Document) -> Document:
    """Say that a merge is also asked for by an artifact's recipe.json."""
    recipe = Recipe.model_json_schema(ref_template="#/components/schemas/{model}")
    recipe["required"] = ["format_version", *recipe["required"]]
    schemas = document["components"]["schemas"]
    schemas.update(recipe.pop("$defs", {}), Recipe=recipe)
    for path in ("/v1/merges", "/v1/plans"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        content["schema"] = {"anyOf": [content["schema"], {"$ref": "#/components/schemas/Recipe"}]}
        content["examples"] = {example["method"]: {"value": example} for example in schemas["MergeBody"]["examples"]}
    return document


def _with_mergekit(document: Document) -> Document:
    """Say that a merge is also asked for as mergekit writes it."""
    document["components"]["schemas"]["MergekitMerge"] = merge_schema()
    for path in ("/v1/merges", "/v1/plans"):
        document["paths"][path]["post"]["requestBody"]["content"][MEDIA_TYPE] = {
            "schema": {"$ref": "#/components/schemas/MergekitMerge"}
        }
    return document


def _add_problems(operation: Document) -> None:
    responses = operation["responses"]
    validation = responses.get("422", {}).get("content", {})
    if "application/json" in validation:
        responses.pop("422")
    for kind in _everywhere(operation):
        add_response(responses, kind, key=str)
    operation["responses"] = {status: copy.deepcopy(responses[status]) for status in sorted(responses)}


def _everywhere(operation: Document) -> list[type[AmalgamError]]:
    kinds: list[type[AmalgamError]] = [BadRequest, Invalid, TooLarge, Unavailable, AmalgamError]
    if "requestBody" in operation:
        kinds += [UnsupportedMediaType]
    keys = [found for found in operation.get("parameters", ()) if found["name"].lower() == "idempotency-key"]
    if any(key["description"] != KEY_WITHOUT_EFFECT for key in keys):
        kinds += [IdempotencyKeyReused]
    return kinds
