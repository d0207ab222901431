"""`amalgam methods`: what the catalog holds."""

from typing import Annotated

import typer

from app.cli.client import Client, Document
from app.cli.options import DEFAULT_PLACE, AsJson, Url
from app.cli.output import out, print_fields, print_json, print_table


def methods(
    name: Annotated[str | None, typer.Argument(help="A method, to see its parameters.")] = None,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """List the merge methods, or show one with its parameters."""
    with Client(url) as client:
        if name is None:
            _print_list(client.get("/v1/methods?limit=200")["items"], as_json)
        else:
            _print_card(client.get(f"/v1/methods/{name}"), as_json)


def _print_list(items: list[Document], as_json: bool) -> None:
    if as_json:
        print_json({"items": items})
        return
    rows = [(card["name"], card["base_model"], card["summary"]) for card in items]
    print_table(("name", "base model", "summary"), rows, empty="The catalog is empty.")


def _print_card(card: Document, as_json: bool) -> None:
    if as_json:
        print_json(card)
        return
    facts = ("name", "title", "summary", "source", "base_model", "data", "granularity")
    print_fields((fact.replace("_", " "), card.get(fact)) for fact in facts)
    out.print()
    parameters = card["parameters"].get("properties", {})
    rows = [
        (key, _range_of(schema), schema.get("default"), schema.get("description")) for key, schema in parameters.items()
    ]
    print_table(("parameter", "values", "default", "meaning"), rows, empty="It takes no parameters.")


def _range_of(schema: Document) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    low = _bound(schema, "minimum", "exclusiveMinimum", "[", "(")
    high = _bound(schema, "maximum", "exclusiveMaximum", "]", ")")
    kind = str(schema.get("type", ""))
    if low is None and high is None:
        return kind
    return f"{kind} {low or '(-inf'}, {high or 'inf)'}"


def _bound(schema: Document, inclusive: str, exclusive: str, closed: str, opened: str) -> str | None:
    is_low = inclusive == "minimum"
    for key, bracket in ((inclusive, closed), (exclusive, opened)):
        if key in schema:
            return f"{bracket}{schema[key]}" if is_low else f"{schema[key]}{bracket}"
    return None
