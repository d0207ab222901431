"""L-LoRA: trained as well as LoRA, do linearized adapters merge better? The telling; the runs are in adapter_runs.py.

Source: Tang et al. 2023, arXiv:2310.04742, section 5.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy
from benchmarks.evidence.adapter_runs import (
    LORAHUB,
    LORAHUB_EXAMPLES,
    METHODS,
    SEARCH_SEED,
    SEARCHED,
    find,
    parts,
)
from benchmarks.evidence.adapter_scores import FACTORS, N_ALL, gains, runs_of, scores
from benchmarks.evidence.adapter_verdict import (
    EARLIER,
    list_methods,
    tell_ends,
    tell_factors,
    tell_ties,
    tell_training,
    verdict,
)
from benchmarks.evidence.brief import N_TEXTS
from workers.figures import bars, lines, style

__all__ = ["NAME", "TITLE", "draw", "find", "parts", "tell"]

NAME = "linearized_lora"
TITLE = "L-LoRA against LoRA"
LABELS = {"lora": "LoRA", "linearized_lora": "L-LoRA"}
SIZES = range(2, N_ALL + 1)


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figure: accuracy alone and merged, absolute and normalized, and over the number of tasks."""
    figure, axes = style.new_figure(3, width=19.0, height=5.6)
    shown = ["alone", *METHODS]
    names = [one.replace("_", " ") for one in shown]
    bars.draw_bars(
        axes[0],
        names,
        {LABELS[name]: [100 * fmean(scores(found, name, one, N_ALL)) for one in shown] for name in SEARCHED},
    )
    axes[0].set_ylabel("accuracy, %")
    axes[0].set_title("Five tasks, absolute")
    bars.draw_bars(
        axes[1],
        names[1:],
        {
            LABELS[name]: [fmean(scores(found, name, one, N_ALL, is_normalized=True)) for one in METHODS]
            for name in SEARCHED
        },
    )
    axes[1].set_ylabel("accuracy / alone")
    axes[1].set_title("Five tasks, normalized")
    curves = {
        f"{LABELS[name]}, {method.removeprefix('task_')}": [
            fmean(scores(found, name, method, size, is_normalized=True)) for size in SIZES
        ]
        for name in SEARCHED
        for method in ("task_arithmetic", "average")
    }
    lines.draw_lines(axes[2], [float(size) for size in SIZES], curves)
    axes[2].set_xticks(SIZES)
    axes[2].set(xlabel="merged tasks", ylabel="accuracy / alone")
    axes[2].set_title("Fewer tasks, normalized")
    return {NAME: figure}


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    n_seeds = len(runs_of(found, "lora"))
    searched = "\n".join(
        f"| {LABELS[one['technique']]} | {one['parameters']['rank']} | {one['parameters']['steps']} "
        f"| {one['parameters']['learning_rate']:g} "
        f"| {accuracy.percent(accuracy.mean(one['validation']))} |"
        for one in found["searched"]
    )
    rows = "\n".join(_row(found, method) for method in ("alone", *METHODS, *FACTORS))
    return f"""Adapters on query and value, batches of 16 texts, AdamW. The setting is found on
validation, with seed {SEARCH_SEED}:

| technique | rank | steps | learning rate | validation, mean |
|---|---:|---:|---:|---:|
{searched}

{tell_training(found)}

The best setting of each is trained ({n_seeds} seeds) and merged. The coefficients of task arithmetic and TIES are
chosen on validation; LoraHub tries {LORAHUB["budget"]} sets of coefficients on {LORAHUB_EXAMPLES} examples of each
task, and composes LoRA's factors and L-LoRA's change of them, as the paper does. In the last two rows LoRA's factors
are merged, not its updates, and L-LoRA's merges are those of the rows above.
Accuracy in % on the first {N_TEXTS} test texts of each task, means over seeds; behind them L-LoRA minus LoRA, in
points, seed by seed.

| merged by | LoRA | L-LoRA | difference | LoRA, normalized | L-LoRA, normalized | difference |
|---|---:|---:|---|---:|---:|---|
{rows}

{verdict(found)}

{tell_factors(found)}

{tell_ties(found)}

{tell_ends()}

{EARLIER}

Fewer tasks: each seed merges other ones, the same of both techniques. Means over seeds, LoRA → L-LoRA; behind them the
difference in points, seed by seed.

Absolute, %:

{_tell_sizes(found, is_normalized=False)}

Normalized, %:

{_tell_sizes(found, is_normalized=True)}

{_verdict_of_fewer(found)}
"""


def _tell_sizes(found: Mapping[str, Any], *, is_normalized: bool) -> str:
    """Return the table of methods and numbers of tasks."""

    def cell(method: str, size: int) -> str:
        both = [
            accuracy.percent(fmean(scores(found, name, method, size, is_normalized=is_normalized))) for name in LABELS
        ]
        return f"{' → '.join(both)} ({_say(gains(found, method, size, is_normalized=is_normalized))})"

    rows = [
        f"| {method.replace('_', ' ')} | {' | '.join(cell(method, size) for size in SIZES)} |" for method in METHODS
    ]
    head = f"| merged by | {' | '.join(f'{size} tasks' for size in SIZES)} |"
    return "\n".join([head, f"|---|{'---|' * len(SIZES)}", *rows])


def _verdict_of_fewer(found: Mapping[str, Any]) -> str:
    """Return where L-LoRA merges better, and where worse, with every seed."""
    told = []
    for is_normalized, what in ((False, "absolute"), (True, "normalized")):
        of_merges = {
            f"{method.replace('_', ' ')} of {size}": gains(found, method, size, is_normalized=is_normalized)
            for method in METHODS
            for size in SIZES[:-1]
        }
        better = [name for name, of_seeds in of_merges.items() if min(of_seeds) > 0]
        worse = [name for name, of_seeds in of_merges.items() if max(of_seeds) < 0]
        told.append(f"in {what} accuracy better: {list_methods(better, 'none')}; worse: {list_methods(worse, 'none')}")
    return f"With every seed L-LoRA's merges of fewer than {N_ALL} are {'. And '.join(told)}."


def _row(found: Mapping[str, Any], method: str) -> str:
    absolute = [accuracy.percent(fmean(scores(found, name, method, N_ALL))) for name in SEARCHED]
    relative = [f"{fmean(scores(found, name, method, N_ALL, is_normalized=True)):.3f}" for name in SEARCHED]
    plain, normalized = (_say(gains(found, method, N_ALL, is_normalized=one)) for one in (False, True))
    return f"| {list_methods([method])} | {' | '.join(absolute)} | {plain} | {' | '.join(relative)} | {normalized} |"


def _say(differences: Sequence[float]) -> str:
    return ", ".join(f"{100 * one:+.1f}" for one in differences)
