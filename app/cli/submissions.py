"""`amalgam merge`, `finetune`, `evaluate` and `analyze`: work handed to the service."""

import json
from pathlib import Path
from typing import Annotated

import typer

from app.cli.client import Client, Document
from app.cli.following import follow
from app.cli.jobs import finish_submission, leave_by_end, print_job
from app.cli.options import DEFAULT_PLACE, AsJson, Tags, Url, Wait, read_models, read_parameters, read_tags
from app.cli.output import bytes_text, out, print_fields, print_json, print_problem, seconds_text
from app.domain.errors import AmalgamError
from app.domain.mergekit.reading import read_merge

YAML_SUFFIXES = (".yaml", ".yml")

Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter; repeatable.")
]
OutputName = Annotated[str | None, typer.Option("--name", "-n", help="The name that the result becomes a version of.")]
Seed = Annotated[int, typer.Option(help="The seed of all random draws.")]
Priority = Annotated[int | None, typer.Option(help="Higher runs earlier.")]


def merge(
    method: Annotated[str | None, typer.Argument(help="A method's name: see `amalgam methods`.")] = None,
    models: Annotated[
        list[str] | None, typer.Argument(metavar="REF[=WEIGHT]...", help="The models to merge, with weights.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Merge what a recipe.json, or a mergekit document (.yaml), says; in place of method and models.",
        ),
    ] = None,
    base: Annotated[str | None, typer.Option("--base", "-b", metavar="REF", help="The base model.")] = None,
    parameters: Parameters = None,
    name: OutputName = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: the base's.")] = None,
    include: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Merge only these tensors.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these tensors as the base's.")
    ] = None,
    adapter_space: Annotated[
        str | None, typer.Option(metavar="SPACE", help="Where adapters are merged: delta, factors, concat or shared.")
    ] = None,
    evaluate: Annotated[list[str] | None, typer.Option("--evaluate", "-e", metavar="TASK", help="Measure it.")] = None,
    tags: Tags = None,
    seed: Annotated[int | None, typer.Option(help="The seed of all random draws; default: 0.")] = None,
    priority: Priority = None,
    parallelism: Annotated[
        int | None, typer.Option(metavar="N", help="Split it into N jobs; default: as the service finds worthwhile.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run even if the same recipe was merged before.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done, and at what cost.")] = False,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Merge models: `amalgam merge ties --base minilm a=1.0 b=0.5 -p density=0.2 --name merged --wait`."""
    asked: Document = {
        "method": method,
        "base_model": base,
        "models": read_models(models or []),
        "parameters": read_parameters(parameters),
        "seed": seed,
        "include": include,
        "exclude": exclude,
        "adapter_space": adapter_space,
        "dtype": dtype,
    }
    asked = {key: value for key, value in asked.items() if value not in (None, [], {})}
    recipe_document = _read_recipe(recipe, list(asked))
    given = {"name": name, "dtype": asked.pop("dtype", None), "tags": read_tags(tags)}
    output = {**recipe_document.pop("output", {}), **{key: value for key, value in given.items() if value}}
    beside: Document = {
        "output": output,
        "evaluate": evaluate,
        "parallelism": parallelism,
        "priority": priority,
        "force": force or None,
    }
    body = recipe_document | asked | {key: value for key, value in beside.items() if value not in (None, [], {})}
    with Client(url) as client:
        if plan:
            _print_plan(client.post("/v1/plans", body), as_json)
            return
        job = client.post("/v1/merges", body)
        if wait and evaluate:
            _follow_merge(client, job, as_json)
        else:
            finish_submission(client, job, wait=wait, as_json=as_json)


def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The base model (a ref).")],
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task to train on.")],
    technique: Annotated[str, typer.Option(help="full, lora or linearized_lora.")] = "full",
    parameters: Parameters = None,
    family: Annotated[
        str | None, typer.Option(metavar="REF", help="A linearized adapter: begin where it began.")
    ] = None,
    name: OutputName = None,
    seed: Seed = 0,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a base model on a task: `amalgam finetune minilm emoji_name --name emoji-expert --wait`."""
    body: Document = {
        "base_model": base,
        "task": task,
        "technique": technique,
        "parameters": read_parameters(parameters),
        "seed": seed,
    }
    if name:
        body["output"] = {"name": name}
    if family:
        body["family"] = family
    with Client(url) as client:
        finish_submission(client, client.post("/v1/finetunes", body), wait=wait, as_json=as_json)


def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="REF", help="The checkpoint to measure.")],
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="What to measure it on.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    force: Annotated[bool, typer.Option("--force", help="Run even if equal weights were measured before.")] = False,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on tasks."""
    body: Document = {"checkpoint": checkpoint, "tasks": tasks, "split": split, "force": force}
    with Client(url) as client:
        finish_submission(client, client.post("/v1/evaluations", body), wait=wait, as_json=as_json)


def analyze(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="What to find out, such as sign_conflict.")],
    models: Annotated[list[str], typer.Argument(metavar="REF...", help="The fine-tuned models to look at.")],
    base: Annotated[str, typer.Option("--base", "-b", metavar="REF", help="The base model.")],
    tasks: Annotated[
        list[str] | None, typer.Option("--task", metavar="TASK", help="A task, for kinds that measure; repeatable.")
    ] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    merged: Annotated[
        str | None, typer.Option(metavar="REF", help="A merge that is there already, for kinds that take it.")
    ] = None,
    parameters: Parameters = None,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Look at models without changing them: `amalgam analyze spectrum a b --base minilm --wait`."""
    body: Document = {
        "kind": kind,
        "base_model": base,
        "models": models,
        "merged": merged,
        "tasks": tasks or [],
        "split": split,
        "parameters": read_parameters(parameters),
    }
    with Client(url) as client:
        finish_submission(client, client.post("/v1/analyses", body), wait=wait, as_json=as_json)


def _read_recipe(path: Path | None, asked: list[str]) -> Document:
    """Return an artifact's recipe.json, or the request that a mergekit document makes.

    asked: what the command line says itself; a recipe leaves nothing to say.
    """
    if path is None:
        if "method" not in asked or "models" not in asked:
            raise typer.BadParameter("Name a method and the models to merge, or a recipe with --recipe FILE.")
        return {}
    if asked:
        message = f"The recipe says that itself: leave out {', '.join(asked)}."
        raise typer.BadParameter(message, param_hint="--recipe")
    if path.suffix in YAML_SUFFIXES:
        return _read_document(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path} cannot be read as JSON: {error}", param_hint="--recipe") from None
    if not isinstance(document, dict) or "format_version" not in document:
        raise typer.BadParameter(f"{path} is no recipe.json of a merge.", param_hint="--recipe")
    return document


def _read_document(path: Path) -> Document:
    try:
        return dict(read_merge(path.read_bytes()).request)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}", param_hint="--recipe") from None
    except AmalgamError as error:
        faults = [f"{fault.pointer}: {fault.message}" for fault in error.errors] or [error.detail]
        raise typer.BadParameter(f"{path}: " + "\n".join(faults), param_hint="--recipe") from None


def _follow_merge(client: Client, job: Document, as_json: bool) -> None:
    """Follow a merge, then its evaluations; a failed evaluation fails the command, though the merge stands."""
    job = follow(client, {"merge": job["id"]})["merge"]
    evaluations = (job.get("result") or {}).get("evaluations") or []
    measured = follow(client, {f"evaluation {n}": job_id for n, job_id in enumerate(evaluations, start=1)})
    print_job(job, as_json=as_json)
    for evaluation in measured.values():
        for metric in (evaluation.get("result") or {}).get("metrics") or []:
            if not as_json:
                out.print(f"  {metric['task']}  {metric['name']} {metric['value']:.4f}  (n = {metric['n']})")
    for ended in (job, *measured.values()):
        leave_by_end(ended, as_json=as_json, is_told=ended is job)


def _print_plan(plan: Document, as_json: bool) -> None:
    if as_json:
        print_json(plan)
        return
    sizes = {"bytes_read", "bytes_written", "peak_memory_bytes", "disk_bytes"}
    facts = [(key, value) for key, value in plan.items() if isinstance(value, int | float | str) and key != "id"]
    print_fields((key.replace("_", " "), bytes_text(float(value)) if key in sizes else value) for key, value in facts)
    if plan.get("estimated_seconds") is not None:
        out.print(f"It would take about {seconds_text(plan['estimated_seconds'])}.")
    for warning in plan.get("warnings") or []:
        out.print(f"Warning: {warning}")
    for problem in plan.get("problems") or []:
        print_problem(problem)
