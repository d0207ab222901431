"""`amalgam sweep`: a merge at many points of its parameters."""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from app.cli.client import Client, Document
from app.cli.following import follow_one
from app.cli.jobs import leave_by_end, print_job
from app.cli.options import (
    DEFAULT_PLACE,
    AsJson,
    Tags,
    Url,
    Wait,
    read_models,
    read_parameters,
    read_tags,
    read_value,
    split_pair,
)
from app.cli.output import out

MAX_VALUES = 1000
FLAGS = {"log": "log", "int": "integer"}


def sweep(
    method: Annotated[str, typer.Argument(help="A method's name: see `amalgam methods`.")],
    models: Annotated[list[str], typer.Argument(metavar="REF[=WEIGHT]...", help="The models to merge, with weights.")],
    base: Annotated[str | None, typer.Option("--base", "-b", metavar="REF", help="The base model.")] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", "-g", metavar="NAME=VALUES", help="Values to try: 0.1,0.2,0.5 or FIRST:LAST:STEP; repeatable."
        ),
    ] = None,
    search: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="NAME=LOW:HIGH[:log|int]", help="A range to search, in place of a grid."),
    ] = None,
    trials: Annotated[int, typer.Option(help="Points of a search.")] = 20,
    parameters: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter that stays.")
    ] = None,
    evaluate: Annotated[
        list[str] | None,
        typer.Option("--evaluate", "-e", metavar="TASK", help="Choose by this task, and measure the best on its test."),
    ] = None,
    split: Annotated[str, typer.Option(help="What to choose on: validation or train.")] = "validation",
    metric: Annotated[str | None, typer.Option(help="What to choose by; default: the tasks' own metric.")] = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="What the best merge becomes a version of.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: the base's.")] = None,
    tags: Tags = None,
    seed: Annotated[int, typer.Option(help="The seed of the merges and of a search.")] = 0,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Find a merge's best parameters: `amalgam sweep ties a b --base minilm -g density=0.1,0.2 -e tickets --wait`."""
    output = {"name": name, "dtype": dtype, "tags": read_tags(tags)}
    merge: Document = {
        "method": method,
        "base_model": base,
        "models": read_models(models),
        "parameters": read_parameters(parameters),
        "seed": seed,
        "output": {key: value for key, value in output.items() if value},
        "evaluate": evaluate or [],
    }
    body: Document = {"merge": merge, "select_on": {"split": split, "metric": metric}}
    if grid:
        body["grid"] = dict(_read_values(item) for item in grid)
    if search:
        ranges = dict(_read_range(item) for item in search)
        body["search"] = {"parameters": ranges, "n_trials": trials, "seed": seed}
    with Client(url) as client:
        job = client.post("/v1/sweeps", body)
        if wait:
            job = follow_one(client, "sweep", job["id"])
        print_job(job, as_json=as_json)
        if not as_json:
            data = (job.get("result") or {}).get("data") or {}
            _print_points(data.get("points") or [])
            _print_area(data.get("area"))
    if wait:
        leave_by_end(job, as_json=as_json, is_told=True)


def _read_values(item: str) -> tuple[str, list[object]]:
    """Read `name=a,b,c`, or `name=first:last:step`, both ends included."""
    name, text = split_pair(item, "--grid")
    if text.count(":") != 2:
        return name, [read_value(value) for value in text.split(",")]
    try:
        first, last, step = (Decimal(number) for number in text.split(":"))
        count = int((last - first) / step) + 1
    except (InvalidOperation, ZeroDivisionError):
        count = 0
    if not 1 <= count <= MAX_VALUES:
        message = f"{text!r} are not 1 to {MAX_VALUES} numbers; expected FIRST:LAST:STEP, as in 0:1:0.05"
        raise typer.BadParameter(message, param_hint="--grid")
    return name, [float(first + step * index) for index in range(count)]


def _read_range(item: str) -> tuple[str, Document]:
    """Read `name=low:high`, and `:log` or `:int` behind it."""
    name, text = split_pair(item, "--search")
    low, _, rest = text.partition(":")
    high, *flags = rest.split(":")
    try:
        found: Document = {"low": float(low), "high": float(high)}
        return name, found | {FLAGS[flag]: True for flag in flags}
    except (ValueError, KeyError):
        message = f"{item!r} is no range; expected NAME=LOW:HIGH, and :log or :int behind it"
        raise typer.BadParameter(message, param_hint="--search") from None


def _print_points(points: Sequence[Document]) -> None:
    for point in points:
        values = ", ".join(f"{name} {value}" for name, value in point["parameters"].items())
        if point["mean"] is None:
            out.print(f"  {values}: {point['problem']}")
        else:
            error = f" ± {point['stderr']:.4f}" if point["stderr"] is not None else ""
            out.print(f"  {values}: {point['mean']:.4f}{error}")


def _print_area(area: Document | None) -> None:
    if area is not None and area["mean"] is not None:
        out.print(f"area under the curve, {area['path']} from {area['low']} to {area['high']}: {area['mean']:.4f}")
