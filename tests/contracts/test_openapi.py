"""The OpenAPI document says what the service does: complete by itself, and true under whatever is sent.

Schemathesis makes requests from the document, good ones and bad ones, and checks every answer against it: no 5xx, no
answer that is not documented, no body outside its schema, nothing accepted that the document refuses.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.domain.catalog import load_catalog
from app.domain.mergekit.reading import read_merge
from app.domain.parameter_checks import with_gradients
from tests.app.api.house import Document, House, open_house
from tests.servers import fresh_bucket

N_EXAMPLES = 8
VERBS = ("get", "put", "post", "delete", "patch")
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def house(s3_server: str) -> Iterator[House]:
    """A service with a little of everything, so that some requests find what they name."""
    with (
        pytest.MonkeyPatch.context() as patch,
        fresh_bucket(s3_server) as bucket,
        tempfile.TemporaryDirectory() as folder,
        open_house(Path(folder) / "house", allowed_hosts=("testserver",)) as opened,
    ):
        for name, value in bucket.environment.items():
            patch.setenv(name, value)
        opened.family()
        opened.bert()
        opened.made("/v1/tasks", opened.task_body())
        opened.finish("/v1/merges", {"method": "average", "models": [{"checkpoint": "model-0"}], "force": True})
        yield opened


@pytest.fixture(scope="module")
def document(house: House) -> Document:
    return house.read("/openapi.json")


def operations(document: Document) -> list[tuple[str, str, Document]]:
    return [
        (path, verb, described)
        for path, verbs in document["paths"].items()
        for verb, described in verbs.items()
        if verb in VERBS
    ]


# --- by itself --------------------------------------------------------------------------------------------------------


def test_the_document_is_openapi_3_1(document: Document) -> None:
    assert document["openapi"].startswith("3.1")
    assert document["info"]["license"]["identifier"] == "Apache-2.0"


def test_every_operation_has_an_id_of_its_own_a_tag_and_a_summary(document: Document) -> None:
    described = [operation for _, _, operation in operations(document)]
    ids = [operation["operationId"] for operation in described]

    assert len(set(ids)) == len(ids)
    assert all(operation["tags"] and operation["summary"] and operation["description"] for operation in described)


def test_every_error_is_a_documented_problem(document: Document) -> None:
    for path, verb, operation in operations(document):
        assert {"400", "422", "500", "503"} <= set(operation["responses"]), (verb, path)
        for status, response in operation["responses"].items():
            if status.startswith(("4", "5")) and path != "/readyz":
                content = response["content"]["application/problem+json"]
                assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, (verb, path, status)
                assert {example["value"]["status"] for example in content["examples"].values()} == {int(status)}
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_body_has_an_example_that_its_schema_takes(document: Document) -> None:
    for path, verb, operation in operations(document):
        for kind, content in operation.get("requestBody", {}).get("content", {}).items():
            if kind != "application/json":
                continue
            schema = resolved(document, content["schema"])
            given = content.get("examples", {}).values()
            examples = [example["value"] for example in given] or schema.get("examples", [])
            assert examples, f"{verb} {path} has no example"
            for example in examples:
                validator(document, content["schema"]).validate(example)


def test_every_example_of_a_problem_is_a_problem(document: Document) -> None:
    problem = validator(document, {"$ref": "#/components/schemas/Problem"})
    for _, _, operation in operations(document):
        for response in operation["responses"].values():
            for example in response.get("content", {}).get("application/problem+json", {}).get("examples", {}).values():
                problem.validate(example["value"])


def test_every_reference_leads_somewhere(document: Document) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
            for inner in value.values():
                yield from references(inner)
        if isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(document)):
        resolved(document, {"$ref": reference})  # or fails


def test_every_method_has_its_parameters_as_a_schema(document: Document) -> None:
    schemas = document["components"]["schemas"]
    arms = [arm["$ref"].rsplit("/", 1)[-1] for arm in schemas["MergeBody"]["properties"]["parameters"]["anyOf"]]

    assert arms == [f"{card.name}_parameters" for card in load_catalog().methods]
    for card in load_catalog().methods:
        assert schemas[f"{card.name}_parameters"] == with_gradients(card.parameters)


def test_every_technique_has_its_parameters_as_a_schema(document: Document) -> None:
    schemas = document["components"]["schemas"]
    for card in load_catalog().finetuners:
        assert schemas[f"finetune_{card.name}_parameters"] == card.parameters


def test_every_list_that_filters_by_tags_says_so(house: House, document: Document) -> None:
    lists = {path: operation["get"] for path, operation in document["paths"].items() if "get" in operation}
    described = {
        path
        for path, operation in lists.items()
        if any(parameter["name"] == "tag" and parameter["explode"] for parameter in operation.get("parameters", ()))
    }
    taken = {path for path in lists if "{" not in path and house.get(f"{path}?tag.a=b").status_code == 200}
    assert described == {path for path in taken if path.startswith("/v1/")}


def test_a_merge_is_described_as_json_and_as_yaml(document: Document) -> None:
    for path in ("/v1/merges", "/v1/plans"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert sorted(content) == ["application/json", "application/yaml"]
    schema = resolved(document, content["application/yaml"]["schema"])
    for example in schema["examples"]:
        validator(document, schema).validate(example)
        assert read_merge(json.dumps(example).encode()).request["method"] == "ties"


def test_a_key_for_idempotency_is_taken_by_every_post_that_creates(document: Document) -> None:
    reading = {"plan_merge", "compare_compatibility", "check_compatibility"}
    for path, verb, operation in operations(document):
        if verb == "post" and operation["operationId"] not in reading:
            names = {parameter["name"].lower() for parameter in operation.get("parameters", ())}
            assert "idempotency-key" in names, path
            assert "409" in operation["responses"], path


def resolved(document: Document, schema: Document) -> Document:
    while "$ref" in schema:
        place: Any = document
        for step in schema["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        schema = place
    return schema


def validator(document: Document, schema: Document) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({**schema, "components": document["components"]})


# --- under whatever is sent -------------------------------------------------------------------------------------------


QUIET = settings(
    max_examples=N_EXAMPLES,
    derandomize=True,  # the same requests in every run
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_documented(house: House, subtests: pytest.Subtests, mode: GenerationMode) -> None:
    described = schemathesis.openapi.from_asgi("/openapi.json", house.app)
    for found in described.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
            continue  # any text is a path
        with subtests.test(operation.label):
            check_operation(operation, mode)


def check_operation(operation: schemathesis.APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> None:
    """Send requests to one operation and check the answers."""

    @QUIET
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:  # Any: Case has type parameters for its checkers only
        if case.headers:  # an event stream has no end to be read to; tests/app/api/test_jobs.py reads them
            case.headers.pop("Accept", None)
        case.call_and_validate(checks=CHECKS)

    try:
        check()
    except Unsatisfiable:
        assert mode is GenerationMode.NEGATIVE  # there is nothing that the document would refuse
