"""CPU seconds that methods take over one matrix on one thread, and what their cards' `work` says (`-h` for options).

What a plan estimates is made of that: app/domain/estimates.py.
"""

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from app.domain.estimates import seconds_of_work
from app.domain.parameter_checks import fill_defaults
from app.domain.recipes import PinnedStep
from app.domain.tensor_parameters import group_tensors
from benchmarks.telling import describe_machine, today
from tests.app.domain.plan_inputs import recipe_of
from tests.workers.memory import MemoryMerge
from tests.workers.multitask import merge_tasks
from workers.catalog import find_post_steps, load_method
from workers.checkpoints.memory import keep_freed_memory
from workers.checkpoints.parallel import one_torch_thread
from workers.numerics import fused

NAME = "l.0.w"
SHAPES = ((768, 768), (768, 3072), (3072, 768))
ROWS: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (  # method, parameters, post-steps
    *((name, {}, ()) for name in ("tsv_m", "tsv_c", "iso_c", "iso_cts", "dc_merge", "opcm", "peru_lora")),
    ("wudi", {"solver": "closed_form"}, ()),
    ("wudi", {"steps": 0}, ()),
    ("wudi", {"steps": 10}, ()),
    ("doge_ta", {"steps": 0}, ()),
    ("doge_ta", {"steps": 10}, ()),
    ("task_arithmetic", {}, ("svc",)),
)


def main() -> None:
    """Print a row for each method, shape and number of models."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectral.work", description=__doc__)
    parser.add_argument("--methods", nargs="+", help="only these")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 4], help="numbers of models (default: 2 4)")
    parser.add_argument("--rounds", type=int, default=2, help="merges of each; the least counts")
    arguments = parser.parse_args()
    keep_freed_memory()
    fused.load()
    print(f"{today()}, {describe_machine()}\n\n| method | tasks | matrix | CPU, s | card, s | card / CPU |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        for n_tasks in arguments.tasks:
            for row in ROWS:
                if arguments.methods is None or row[0] in arguments.methods:
                    _measure(row, shape, n_tasks, arguments.rounds)


def _measure(
    row: tuple[str, dict[str, Any], tuple[str, ...]], shape: tuple[int, int], n_tasks: int, rounds: int
) -> None:
    name, asked, step_names = row
    method = load_method(name)
    steps = [step for step in find_post_steps() if step.card.name in step_names]
    merge = MemoryMerge(method, asked, post_steps=[(step, {}) for step in steps])
    base, *models = _draw(shape, n_tasks)
    least = min(_time(merge, base, models) for _ in range(rounds))
    pinned = tuple(
        PinnedStep(name=step.card.name, version=1, parameters=fill_defaults(step.card.parameters, {})) for step in steps
    )
    parameters = fill_defaults(method.card.parameters, asked, n_models=n_tasks)
    recipe = recipe_of(n_tasks, method=name, parameters=parameters, post_steps=pinned)
    cards = method.card, [step.card for step in steps]
    told = seconds_of_work(recipe, group_tensors(recipe, [NAME]), {NAME: shape}, cards)
    label = " ".join([name, *(f"{key}={value}" for key, value in asked.items()), *step_names])
    size = f"{shape[0]} × {shape[1]}"
    print(f"| {label} | {n_tasks} | {size} | {least:.2f} | {told:.2f} | {told / least:.2f} |", flush=True)


def _draw(shape: tuple[int, int], n_tasks: int) -> list[dict[str, Tensor]]:
    """Return a base and models of one matrix, whose task vectors' spectra decay."""
    generator = torch.Generator().manual_seed(20261130)
    base, smaller = 0.02 * torch.randn(shape, generator=generator), min(shape)
    decay = torch.linspace(1, smaller, smaller).pow(-0.7)
    models = [{NAME: base}]
    for _ in range(n_tasks):
        left = torch.randn(shape[0], smaller, generator=generator) * decay
        models.append({NAME: base + 1e-3 * left @ torch.randn(smaller, shape[1], generator=generator) / smaller**0.5})
    return models


def _time(merge: MemoryMerge, base: dict[str, Tensor], models: list[dict[str, Tensor]]) -> float:
    with one_torch_thread():
        before = time.process_time()
        if merge.method.card.produces == "multitask":
            merge_tasks(merge, base, models)
        else:
            merge(base, models)
        return time.process_time() - before


if __name__ == "__main__":
    main()
