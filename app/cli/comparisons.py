"""`amalgam compare`: models side by side, and what that means."""

from typing import Annotated

import typer
from rich.console import Console

from app.cli.client import Client, Document
from app.cli.comparing import describe, draw_table, read_rows, read_scale
from app.cli.options import DEFAULT_PLACE, AsJson, Url, split_pair
from app.cli.output import out, print_json


def compare(
    checkpoints: Annotated[list[str], typer.Argument(metavar="REF...", help="The checkpoints to compare.")],
    tasks: Annotated[list[str], typer.Option("--task", "-t", metavar="TASK", help="A task; repeatable.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    metric: Annotated[str, typer.Option(help="The metric.")] = "accuracy",
    individual: Annotated[
        list[str] | None,
        typer.Option(metavar="TASK=REF", help="The model fine-tuned on the task alone; repeatable."),
    ] = None,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Compare what was measured: `amalgam compare minilm merged --task emoji_name --task language_id`."""
    experts = dict(split_pair(item, "--individual") for item in individual or ())
    with Client(url) as client:
        comparison = fetch_comparison(client, checkpoints, tasks, split=split, metric=metric, individual=experts)
    if as_json:
        print_json(comparison)
        return
    rows, scale = read_rows(comparison), read_scale(comparison)
    table = draw_table(rows, tasks, metric=metric, split=split, scale=scale)
    Console(width=None if out.is_terminal else 160).print(table)
    out.print()
    for sentence in describe(rows, n_tasks=len(tasks), scale=scale):
        out.print(sentence, markup=False)


def fetch_comparison(
    client: Client,
    checkpoints: list[str],
    tasks: list[str],
    *,
    split: str = "test",
    metric: str = "accuracy",
    individual: dict[str, str] | None = None,
) -> Document:
    """Return GET /v1/comparisons for these checkpoints and tasks; `individual`: task -> ref of its expert."""
    experts = ",".join(f"{task}:{reference}" for task, reference in (individual or {}).items())
    return client.get(
        "/v1/comparisons",
        {
            "checkpoints": ",".join(checkpoints),
            "tasks": ",".join(tasks),
            "split": split,
            "metric": metric,
            "individual": experts or None,
        },
    )
