"""What the pages say works as they say it: commands, options, paths, parameters, bodies, settings."""

import json
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import typer.main
from jsonschema import Draft202012Validator

from app.cli import settings_page
from app.cli.main import program
from app.config import Settings
from app.main import create_app

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    *(f"docs/{name}.md" for name in ("quickstart", "api", "adapters", "learning", "sweeps", "operations", "scaling")),
]
SHELL_BLOCK = re.compile(r"^```sh\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)
SERVICE = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Call:
    """One curl command: what it asks of the service."""

    page: str
    verb: str
    path: str
    query: tuple[tuple[str, str], ...]
    body: Any


def commands(page: str) -> Iterator[list[str]]:
    """Yield the words of each command in the page's shell blocks."""
    for block in SHELL_BLOCK.findall((ROOT / page).read_text()):
        pending = ""
        for line in block.splitlines():
            pending += line.removesuffix("\\") + "\n" * (not line.endswith("\\"))
            if line.endswith("\\"):
                continue
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quotation that goes on in the next line
                continue
            pending = ""
            if words:
                yield words
        assert pending == "", f"{page}: a command does not end: {pending}"


def amalgam_lines() -> list[tuple[str, list[str]]]:
    return [(page, words[1:]) for page in PAGES for words in commands(page) if words[0] == "amalgam"]


def curl_calls() -> list[Call]:
    return [read_curl(page, words[1:]) for page in PAGES for words in commands(page) if words[0] == "curl"]


def read_curl(page: str, words: list[str]) -> Call:
    verb, body, url = None, None, None
    remaining = iter(words)
    for word in remaining:
        if word in ("-X", "--request"):
            verb = next(remaining)
        elif word in ("-d", "--data"):
            body = json.loads(next(remaining))
        elif word in ("-H", "--header", "-o"):
            next(remaining)
        elif word.startswith(SERVICE):
            url = urlsplit(word)
        else:
            assert word.startswith("-"), f"{page}: curl has the odd word {word}"
    assert url is not None, f"{page}: a curl without a URL of ours: {words}"
    return Call(page, verb or ("GET" if body is None else "POST"), url.path, tuple(parse_qsl(url.query)), body)


@cache
def openapi() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home:
        return create_app(Settings(home=Path(home))).openapi()


def find_operation(call: Call) -> dict[str, Any] | None:
    for template, operations in openapi()["paths"].items():
        pattern = re.sub(r"\\\{[^}]*path[^}]*\\\}", ".+", re.escape(template))
        pattern = re.sub(r"\\\{[^}]*\\\}", "[^/]+", pattern)
        if re.fullmatch(pattern, call.path) and call.verb.lower() in operations:
            operation: dict[str, Any] = operations[call.verb.lower()]
            return operation
    return None


def faults_of_body(call: Call) -> list[str]:
    operation = find_operation(call)
    assert operation is not None
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = Draft202012Validator({**schema, "components": openapi()["components"]})
    return [error.message for error in validator.iter_errors(call.body)]


@pytest.mark.parametrize("page", PAGES)
def test_every_page_has_commands_that_can_be_read(page: str) -> None:
    assert list(commands(page)) != []


@pytest.mark.parametrize(("page", "words"), amalgam_lines(), ids=lambda value: " ".join(value)[:60])
def test_every_command_line_has_commands_and_options_that_exist(page: str, words: list[str]) -> None:
    command: Any = typer.main.get_command(program)  # Any: typer's copy of click is private
    remaining = list(words)
    while hasattr(command, "commands"):
        name = remaining.pop(0)
        assert name in command.commands, f"{page}: there is no command `{name}` in `amalgam {' '.join(words)}`"
        command = command.commands[name]

    context = command.context_class(command, info_name="amalgam")
    options, rest, _ = command.make_parser(context).parse_args(remaining)

    required = [parameter.name for parameter in command.params if parameter.required]
    assert [name for name in required if not options.get(name)] == []
    assert rest == []


@pytest.mark.parametrize("call", curl_calls(), ids=lambda call: f"{call.page} {call.verb} {call.path}")
def test_every_curl_asks_for_what_the_service_has(call: Call) -> None:
    if call.path in ("/openapi.json", "/docs"):
        return
    operation = find_operation(call)

    assert operation is not None, f"{call.page}: no operation {call.verb} {call.path}"
    known = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"}
    assert {name for name, _ in call.query} - known == set()


@pytest.mark.parametrize(
    "call", [call for call in curl_calls() if call.body is not None], ids=lambda call: f"{call.page} {call.path}"
)
def test_every_body_is_valid_by_the_openapi_document(call: Call) -> None:
    assert faults_of_body(call) == []


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_every_make_target_exists(page: str) -> None:
    named = {words[1] for words in commands(page) if words[0] == "make" and len(words) > 1}
    defined = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert named - defined == set()


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page: str) -> None:
    named = set(re.findall(r"AMALGAM_[A-Z_]+[A-Z]", (ROOT / page).read_text()))
    known = {f"AMALGAM_{name.upper()}" for name in Settings.model_fields} | {"AMALGAM_URL", "AMALGAM_MODELS"}

    assert named - known == set()


def test_the_table_of_settings_is_up_to_date() -> None:
    page = settings_page.PAGE.read_text()

    assert page == settings_page.page_with_table(page), "run `python -m app.cli.settings_page`"


def test_the_example_of_a_task_in_the_quickstart_is_a_valid_body() -> None:
    blocks = re.findall(
        r"^```json\n(.*?)^```", (ROOT / "docs/quickstart.md").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    call = Call("docs/quickstart.md", "POST", "/v1/tasks", (), json.loads(blocks[0]))

    assert faults_of_body(call) == []
