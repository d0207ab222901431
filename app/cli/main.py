"""The command `amalgam`: the servers (serve, api, worker), and a client of the REST API for the rest.

Exit status: 0 done, 1 refused or failed, 2 the command line is wrong, 3 no service answers, 130 interrupted.
"""

import sys
from collections.abc import Callable

import typer

from app.cli import artifacts, checkpoints, comparisons, demo, jobs, methods, serving, submissions, sweeps, tasks
from app.cli.client import ServiceProblem, ServiceUnreachable
from app.cli.output import err, print_problem

program = typer.Typer(
    name="amalgam",
    help="Merge fine-tuned model checkpoints: run the service, or use one over HTTP.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

_SERVICE, _CLIENT = "Run the service", "Use a service"
_SERVICE_COMMANDS: tuple[Callable[..., None], ...] = (
    serving.serve, serving.api, serving.worker, serving.migrate, serving.config, demo.demo,
)  # fmt: skip
_CLIENT_COMMANDS: tuple[Callable[..., None], ...] = (
    submissions.merge, sweeps.sweep, artifacts.add_tasks, artifacts.materialize, submissions.finetune,
    submissions.evaluate, submissions.analyze, comparisons.compare, methods.methods,
)  # fmt: skip

for command in _SERVICE_COMMANDS:
    program.command(rich_help_panel=_SERVICE)(command)
for group in (checkpoints.commands, tasks.commands, jobs.commands):
    program.add_typer(group, rich_help_panel=_CLIENT)
for command in _CLIENT_COMMANDS:
    program.command(rich_help_panel=_CLIENT)(command)


def main() -> None:
    """Run the command line and leave with its exit status."""
    sys.exit(run())


def run() -> int:
    """Run the command line; return the exit status."""
    try:
        program()
    except ServiceProblem as problem:
        print_problem(problem.problem, as_json="--json" in sys.argv)
        return 1
    except ServiceUnreachable as error:
        err.print(str(error), style="red")
        return 3
    except SystemExit as leaving:  # typer's way to end, also after Ctrl-C
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    return 0


if __name__ == "__main__":
    main()
