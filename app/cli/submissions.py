"""`amalgam merge`, `finetune` and `evaluate`: work handed to the service."""

from typing import Annotated

import typer

from app.cli.client import Client, Document
from app.cli.following import follow
from app.cli.jobs import finish_submission, leave_by_end, print_job
from app.cli.options import DEFAULT_PLACE, AsJson, Tags, Url, Wait, read_models, read_parameters, read_tags
from app.cli.output import bytes_text, out, print_fields, print_json, print_problem, seconds_text

Parameters = Annotated[
    list[str] | None, typer.Option("--parameter", "-p", metavar="NAME=VALUE", help="A parameter; repeatable.")
]
OutputName = Annotated[str | None, typer.Option("--name", "-n", help="The name that the result becomes a version of.")]
Seed = Annotated[int, typer.Option(help="The seed of all random draws.")]
Priority = Annotated[int | None, typer.Option(help="Higher runs earlier.")]


def merge(
    method: Annotated[str, typer.Argument(help="A method's name: see `amalgam methods`.")],
    models: Annotated[list[str], typer.Argument(metavar="REF[=WEIGHT]...", help="The models to merge, with weights.")],
    base: Annotated[str | None, typer.Option("--base", "-b", metavar="REF", help="The base model.")] = None,
    parameters: Parameters = None,
    name: OutputName = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; default: the base's.")] = None,
    include: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Merge only these tensors.")] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these tensors as the base's.")
    ] = None,
    evaluate: Annotated[list[str] | None, typer.Option("--evaluate", "-e", metavar="TASK", help="Measure it.")] = None,
    tags: Tags = None,
    seed: Seed = 0,
    priority: Priority = None,
    force: Annotated[bool, typer.Option("--force", help="Run even if the same recipe was merged before.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be done, and at what cost.")] = False,
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Merge models: `amalgam merge ties --base minilm a=1.0 b=0.5 -p density=0.2 --name merged --wait`."""
    output = {"name": name, "dtype": dtype, "tags": read_tags(tags)}
    body: Document = {
        "method": method,
        "base_model": base,
        "models": read_models(models),
        "parameters": read_parameters(parameters),
        "seed": seed,
        "output": {key: value for key, value in output.items() if value},
        "include": include,
        "exclude": exclude,
        "evaluate": evaluate,
        "priority": priority,
        "force": force or None,
    }
    body = {key: value for key, value in body.items() if value not in (None, [], {})}
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
    technique: Annotated[str, typer.Option(help="How to train.")] = "full",
    parameters: Parameters = None,
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
    with Client(url) as client:
        finish_submission(client, client.post("/v1/finetunes", body), wait=wait, as_json=as_json)


def evaluate(
    checkpoint: Annotated[str, typer.Argument(metavar="REF", help="The checkpoint to measure.")],
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="What to measure it on.")],
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    wait: Wait = False,
    url: Url = DEFAULT_PLACE,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on tasks."""
    body: Document = {"checkpoint": checkpoint, "tasks": tasks, "split": split}
    with Client(url) as client:
        finish_submission(client, client.post("/v1/evaluations", body), wait=wait, as_json=as_json)


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
