"""L-LoRA: trained as well as LoRA, do linearized adapters merge better? The telling; the runs are in adapter_runs.py.

Source: Tang et al. 2023, arXiv:2310.04742, section 5.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import Counts
from benchmarks.evidence.adapter_runs import (
    LORAHUB,
    LORAHUB_EXAMPLES,
    METHODS,
    SEARCH_SEED,
    SEARCHED,
    find,
    parts,
)
from benchmarks.evidence.brief import N_TEXTS
from workers.figures import bars, lines, style

__all__ = ["NAME", "TITLE", "draw", "find", "parts", "tell"]

NAME = "linearized_lora"
TITLE = "L-LoRA against LoRA"
LABELS = {"lora": "LoRA", "linearized_lora": "L-LoRA"}
N_ALL = 5  # tasks
SIZES = range(2, N_ALL + 1)


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figure: accuracy alone and merged, absolute and normalized, and over the number of tasks."""
    figure, axes = style.new_figure(3, width=19.0, height=5.6)
    shown = ["alone", *METHODS]
    names = [one.replace("_", " ") for one in shown]
    bars.draw_bars(
        axes[0],
        names,
        {LABELS[name]: [100 * fmean(_scores(found, name, one, N_ALL)) for one in shown] for name in SEARCHED},
    )
    axes[0].set_ylabel("accuracy, %")
    axes[0].set_title("Five tasks, absolute")
    bars.draw_bars(
        axes[1],
        names[1:],
        {
            LABELS[name]: [fmean(_scores(found, name, one, N_ALL, is_normalized=True)) for one in METHODS]
            for name in SEARCHED
        },
    )
    axes[1].set_ylabel("accuracy / alone")
    axes[1].set_title("Five tasks, normalized")
    curves = {
        f"{LABELS[name]}, {method.removeprefix('task_')}": [
            fmean(_scores(found, name, method, size, is_normalized=True)) for size in SIZES
        ]
        for name in SEARCHED
        for method in ("task_arithmetic", "average")
    }
    lines.draw_lines(axes[2], [float(size) for size in SIZES], curves)
    axes[2].set_xticks(SIZES)
    axes[2].set(xlabel="merged tasks", ylabel="accuracy / alone")
    axes[2].set_title("Fewer tasks, normalized")
    return {NAME: figure}


def _runs(found: Mapping[str, Any], technique: str, size: int = N_ALL) -> list[Mapping[str, Any]]:
    """Return what was measured with so many tasks, seed by seed."""
    runs = found["runs"] if size == N_ALL else [one for one in found["fewer"] if len(one["models"]) == size]
    return [run for run in runs if run["technique"] == technique]


def _of(run: Mapping[str, Any], method: str) -> Counts:
    counts: Counts = run["individual"] if method == "alone" else run["merged"][method]["test"]
    return counts


def _scores(
    found: Mapping[str, Any], technique: str, method: str, size: int, *, is_normalized: bool = False
) -> list[float]:
    """Return the mean accuracy over the tasks, or over that of the models alone, seed by seed."""
    return [
        accuracy.normalized(_of(run, method), run["individual"]) if is_normalized else accuracy.mean(_of(run, method))
        for run in _runs(found, technique, size)
    ]


def _gains(found: Mapping[str, Any], method: str, size: int, *, is_normalized: bool) -> list[float]:
    """Return L-LoRA minus LoRA, seed by seed."""
    linearized, plain = (
        _scores(found, name, method, size, is_normalized=is_normalized) for name in ("linearized_lora", "lora")
    )
    return [one - other for one, other in zip(linearized, plain, strict=True)]


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    n_seeds = len(_runs(found, "lora"))
    searched = "\n".join(
        f"| {LABELS[one['technique']]} | {one['parameters']['rank']} | {one['parameters']['steps']} "
        f"| {one['parameters']['learning_rate']:g} "
        f"| {accuracy.percent(accuracy.mean(one['validation']))} |"
        for one in found["searched"]
    )
    gap = 100 * (_best_validation(found, "linearized_lora") - _best_validation(found, "lora"))
    rows = "\n".join(_row(found, method) for method in ("alone", *METHODS))
    return f"""Adapters on query and value, batches of 16 texts, AdamW. The setting is found on
validation, with seed {SEARCH_SEED}:

| technique | rank | steps | learning rate | validation, mean |
|---|---:|---:|---:|---:|
{searched}

The best setting of each is trained ({_seeds(n_seeds)}) and merged; there L-LoRA is {gap:+.1f} points from LoRA on
validation. The coefficients of task arithmetic and TIES are chosen on validation; LoraHub tries
{LORAHUB["budget"]} sets of coefficients on {LORAHUB_EXAMPLES} examples of each task, and composes LoRA's factors and
L-LoRA's change of them, as the paper does. TIES sees LoRA's updates of the weights, and L-LoRA's change of the factors.
Accuracy in % on the first {N_TEXTS} test texts of each task, means over seeds; behind them L-LoRA minus LoRA, in
points, seed by seed.

| merged by | LoRA | L-LoRA | difference | LoRA, normalized | L-LoRA, normalized | difference |
|---|---:|---:|---|---:|---:|---|
{rows}

{_verdict(found)}

{_tell_factors(found)}

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
            accuracy.percent(fmean(_scores(found, name, method, size, is_normalized=is_normalized))) for name in LABELS
        ]
        return f"{' → '.join(both)} ({_say(_gains(found, method, size, is_normalized=is_normalized))})"

    rows = [
        f"| {method.replace('_', ' ')} | {' | '.join(cell(method, size) for size in SIZES)} |" for method in METHODS
    ]
    head = f"| merged by | {' | '.join(f'{size} tasks' for size in SIZES)} |"
    return "\n".join([head, f"|---|{'---|' * len(SIZES)}", *rows])


def _verdict_of_fewer(found: Mapping[str, Any]) -> str:
    """Return where L-LoRA merges better, and where worse, with every seed."""
    told = []
    for is_normalized, what in ((False, "absolute"), (True, "normalized")):
        gains = {
            f"{method.replace('_', ' ')} of {size}": _gains(found, method, size, is_normalized=is_normalized)
            for method in METHODS
            for size in SIZES[:-1]
        }
        better = [name for name, of_seeds in gains.items() if min(of_seeds) > 0]
        worse = [name for name, of_seeds in gains.items() if max(of_seeds) < 0]
        told.append(f"in {what} accuracy better: {_list(better, 'none')}; worse: {_list(worse, 'none')}")
    return f"With every seed L-LoRA's merges of fewer than {N_ALL} are {'. And '.join(told)}."


def _tell_factors(found: Mapping[str, Any]) -> str:
    """Return what LoRA's merges score where its factors are merged, as the paper's are, against its updates."""
    runs = _runs(found, "lora")
    told = "; ".join(
        f"{method.replace('_', ' ')} "
        f"{accuracy.percent(fmean(accuracy.mean(run['of_factors'][method]['test']) for run in runs))} "
        f"({_say([_mean_of(run, method) - accuracy.mean(run['merged'][method]['test']) for run in runs])})"
        for method in runs[0]["of_factors"]
    )
    return (
        "The paper merges LoRA's factors one by one, in place of its updates. So merged, LoRA scores, in % "
        f"(behind it points against\nits updates merged, seed by seed): {told}."
    )


def _mean_of(run: Mapping[str, Any], method: str) -> float:
    return accuracy.mean(run["of_factors"][method]["test"])


def _seeds(n_seeds: int) -> str:
    return "one seed" if n_seeds == 1 else f"{n_seeds} seeds"


def _row(found: Mapping[str, Any], method: str) -> str:
    absolute = [accuracy.percent(fmean(_scores(found, name, method, N_ALL))) for name in SEARCHED]
    relative = [f"{fmean(_scores(found, name, method, N_ALL, is_normalized=True)):.3f}" for name in SEARCHED]
    gains = [_say(_gains(found, method, N_ALL, is_normalized=is_normalized)) for is_normalized in (False, True)]
    return f"| {method.replace('_', ' ')} | {' | '.join(absolute)} | {gains[0]} | {' | '.join(relative)} | {gains[1]} |"


def _say(gains: Sequence[float]) -> str:
    return ", ".join(f"{100 * gain:+.1f}" for gain in gains)


def _verdict(found: Mapping[str, Any]) -> str:
    told = []
    for is_normalized, what in ((False, "absolute"), (True, "normalized")):
        gains = {method: _gains(found, method, N_ALL, is_normalized=is_normalized) for method in METHODS}
        better = [method for method, of_seeds in gains.items() if min(of_seeds) > 0]
        worse = [method for method, of_seeds in gains.items() if max(of_seeds) < 0]
        told.append(f"in {what} accuracy L-LoRA merges better by {_list(better)}, worse by {_list(worse)}")
    half = 100 * accuracy.half_width(_runs(found, "lora")[0]["individual"])
    n_seeds = len(_runs(found, "lora"))
    seeds = "one seed" if n_seeds == 1 else f"with each of {n_seeds} seeds"
    return f"**Finding** ({seeds}): {'; '.join(told)}.\nHalf an interval of one mean is {half:.1f} points."


def _list(methods: Sequence[str], nothing: str = "no method") -> str:
    return ", ".join(method.replace("_", " ") for method in methods) or nothing


def _best_validation(found: Mapping[str, Any], technique: str) -> float:
    return max(accuracy.mean(one["validation"]) for one in found["searched"] if one["technique"] == technique)
