"""What a point of a sweep costs beside its evaluation alone, and what the first one costs that measures statistics.

`python -m benchmarks.sweeps [--data .suite] [--methods …]`: five models of 22.7 million parameters, three tasks of 128
texts; seconds of CPU, one thread.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median

from pydantic import JsonValue

from app.domain.catalog import load_catalog
from app.domain.recipes import PinnedTask, Recipe, RecipeData, RecipeModel, pin
from app.domain.sweeps import MeasuredPoint, Selection, make_grid
from app.domain.work import EvaluateWork, LearningTask, MergeWork, SweepWork
from benchmarks.suite.inputs import Suite, ignore, open_suite
from workers.runner import WorkOrder, perform

N_TASKS = 3
SPLIT = "validation"
MAX_EXAMPLES = 64  # of each task, that a method looks at
GRIDS: Mapping[str, tuple[str, list[JsonValue]]] = {
    "task_arithmetic": ("scaling_coefficient", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]),
    "ties": ("scaling_coefficient", [0.5, 0.8, 1.1, 1.4, 1.7, 2.0]),
    "fisher": ("floor", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2]),
    "regmean": ("non_diagonal_scale", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweeps", description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path(".suite"), help="the suite's folder; models it lacks are trained"
    )
    parser.add_argument("--methods", nargs="+", choices=list(GRIDS), default=list(GRIDS))
    arguments = parser.parse_args()
    suite = open_suite(arguments.data, say=True)
    alone = min(measure_evaluation(suite) for _ in range(3))
    print(f"evaluation alone: {alone:.2f} s\n")
    print(
        "| method | first point | a later one (median, least) | later / evaluation | the best once more, into files |"
    )
    print("|---|---|---|---|---|")
    for method in arguments.methods:
        first, later, last = measure_sweep(suite, method)
        print(
            f"| {method} | {first:.2f} s | {median(later):.2f} s, {min(later):.2f} s | {min(later) / alone:.2f} | "
            f"{last:.2f} s |",
            flush=True,
        )


def measure_evaluation(suite: Suite) -> float:
    """Return the seconds that it takes to measure one stored model on the tasks."""
    tasks = suite.tasks[:N_TASKS]
    work = EvaluateWork(
        checkpoint=suite.models[0],
        tasks=tasks,
        base_models={task.id: suite.base for task in tasks},
        split={task.id: SPLIT for task in tasks},
    )
    began_at = time.process_time()
    perform(WorkOrder(work=work), ignore)
    return time.process_time() - began_at


def measure_sweep(suite: Suite, method: str) -> tuple[float, list[float], float]:
    """Return the seconds of the first point, of each later one, and of what follows the last."""
    path, values = GRIDS[method]
    tasks = suite.tasks[:N_TASKS]
    with tempfile.TemporaryDirectory(prefix="amalgam-bench-") as folder:
        work = SweepWork(
            merge=make_merge(suite, method, Path(folder) / "output"),
            space=make_grid({path: values}),
            selection=Selection(split=SPLIT, metric="accuracy"),
            tasks=tasks,
            base_models={task.id: suite.base for task in tasks},
            scratch=Path(folder) / "sweep",
        )
        marks = [time.process_time()]

        def mark(_point: MeasuredPoint) -> None:
            marks.append(time.process_time())

        perform(WorkOrder(work=work), ignore, mark)
        marks.append(time.process_time())
    spans = [after - before for before, after in pairwise(marks)]
    return spans[0], spans[1:-1], spans[-1]


def make_merge(suite: Suite, method: str, output: Path) -> MergeWork:
    """Return the merge of all models into a folder, which is made; it looks at their tasks where it learns."""
    output.mkdir()
    card, parameters = load_catalog().check(method, {}, has_base_model=True, weights=[1.0] * len(suite.models))
    learns = card.learns(parameters)
    digests = tuple(PinnedTask(digest=task.spec.digest) for task in suite.tasks)
    recipe = Recipe(
        method=card.name,
        method_version=card.version,
        base_model=pin(suite.base),
        models=tuple(RecipeModel(**pin(model).model_dump()) for model in suite.models),
        parameters=parameters,
        shard_bytes=1 << 53,
        data=RecipeData(split=SPLIT, tasks=digests, max_examples=MAX_EXAMPLES) if learns else None,
    )
    learning = tuple(LearningTask(task=task, head_base_model=suite.base) for task in suite.tasks) if learns else ()
    return MergeWork(recipe=recipe, base_model=suite.base, models=suite.models, learning=learning, output=output)


if __name__ == "__main__":
    main()
