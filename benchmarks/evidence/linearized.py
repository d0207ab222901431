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
    N_SUBSETS,
    SEARCH_SEED,
    SEARCHED,
    STEPS,
    find,
    parts,
)
from workers.figures import bars, lines, style

__all__ = ["NAME", "TITLE", "draw", "find", "parts", "tell"]

NAME = "linearized_lora"
TITLE = "L-LoRA against LoRA"
LABELS = {"lora": "LoRA", "linearized_lora": "L-LoRA"}


def draw(found: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figure: accuracy alone and merged, absolute and normalized, and over the number of tasks."""
    figure, axes = style.new_figure(3, width=19.0, height=5.6)
    shown = ["alone", *METHODS]
    names = [one.replace("_", " ") for one in shown]
    bars.draw_bars(
        axes[0], names, {LABELS[name]: [100 * _mean(found, name, one) for one in shown] for name in SEARCHED}
    )
    axes[0].set_ylabel("accuracy, %")
    axes[0].set_title("Five tasks, absolute")
    bars.draw_bars(
        axes[1], names[1:], {LABELS[name]: [_normalized(found, name, one) for one in METHODS] for name in SEARCHED}
    )
    axes[1].set_ylabel("accuracy / alone")
    axes[1].set_title("Five tasks, normalized")
    sizes = _sizes(found)
    curves = {f"{LABELS[name]}, {method.removeprefix('task_')}": values for (name, method), values in _curves(found)}
    lines.draw_lines(axes[2], [float(size) for size in sizes], curves)
    axes[2].set_xticks(sizes)
    axes[2].set(xlabel="merged tasks", ylabel="accuracy / alone")
    axes[2].set_title("Fewer tasks, normalized")
    return {NAME: figure}


def _sizes(found: Mapping[str, Any]) -> list[int]:
    """Return the numbers of tasks that were merged, all of them last."""
    fewer = {len(one["models"]) for trend in found["trend"] for one in trend["subsets"]}
    return [*sorted(fewer), len(found["runs"][0]["individual"])]


def _curves(found: Mapping[str, Any]) -> list[tuple[tuple[str, str], list[float]]]:
    """Return the normalized accuracy over the number of tasks by technique and method."""
    fewer = _sizes(found)[:-1]
    return [
        (
            (trend["technique"], method),
            [*(_of_size(found, trend, method, size) for size in fewer), _of_all(found, trend["technique"], method)],
        )
        for trend in found["trend"]
        for method in ("task_arithmetic", "average")
    ]


def _runs(found: Mapping[str, Any], technique: str) -> list[Mapping[str, Any]]:
    return [run for run in found["runs"] if run["technique"] == technique]


def _of(run: Mapping[str, Any], method: str) -> Counts:
    counts: Counts = run["individual"] if method == "alone" else run["merged"][method]["test"]
    return counts


def _mean(found: Mapping[str, Any], technique: str, method: str) -> float:
    return fmean(accuracy.mean(_of(run, method)) for run in _runs(found, technique))


def _normalized(found: Mapping[str, Any], technique: str, method: str) -> float:
    return fmean(accuracy.normalized(_of(run, method), run["individual"]) for run in _runs(found, technique))


def _of_size(found: Mapping[str, Any], trend: Mapping[str, Any], method: str, size: int) -> float:
    own = _first(found, trend["technique"])["individual"]
    return fmean(accuracy.normalized(one[method], own) for one in trend["subsets"] if len(one["models"]) == size)


def _of_all(found: Mapping[str, Any], technique: str, method: str) -> float:
    run = _first(found, technique)
    return accuracy.normalized(_of(run, method), run["individual"])


def _first(found: Mapping[str, Any], technique: str) -> Mapping[str, Any]:
    return _runs(found, technique)[0]


def tell(found: Mapping[str, Any]) -> str:
    """Return the section's text."""
    n_seeds = len(_runs(found, "lora"))
    searched = "\n".join(
        f"| {LABELS[one['technique']]} | {one['parameters']['rank']} | {one['parameters']['learning_rate']:g} "
        f"| {accuracy.percent(accuracy.mean(one['validation']))} |"
        for one in found["searched"]
    )
    gap = 100 * (_best_validation(found, "linearized_lora") - _best_validation(found, "lora"))
    rows = "\n".join(_row(found, method) for method in ("alone", *METHODS))
    return f"""Adapters on query and value, {STEPS} steps of 16 texts, AdamW. The setting is found on
validation, with seed {SEARCH_SEED}:

| technique | rank | learning rate | validation, mean |
|---|---:|---:|---:|
{searched}

The best setting of each is trained ({_seeds(n_seeds)}) and merged; there L-LoRA is {gap:+.1f} points from LoRA on
validation. The coefficients of task arithmetic and TIES are chosen on validation; LoraHub tries
{LORAHUB["budget"]} sets of coefficients on {LORAHUB_EXAMPLES} examples of each task, and composes LoRA's factors and
L-LoRA's change of them, as the paper does. TIES sees LoRA's updates of the weights, and L-LoRA's change of the factors.
Accuracy on test in %, means over seeds; behind them L-LoRA minus LoRA,
in points, seed by seed.

| merged by | LoRA | L-LoRA | difference | LoRA, normalized | L-LoRA, normalized | difference |
|---|---:|---:|---|---:|---:|---|
{rows}

{_verdict(found)}

{_tell_factors(found)}

Fewer tasks, means over {N_SUBSETS} subsets of each size, seed {SEARCH_SEED}, normalized:

| merged tasks | {" | ".join(f"{size}" for size in _sizes(found))} |
|---|{"---:|" * len(_sizes(found))}
{_tell_trend(found)}
"""


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


def _tell_trend(found: Mapping[str, Any]) -> str:
    return "\n".join(
        f"| {LABELS[name]}, {method.replace('_', ' ')} | {' | '.join(f'{value:.3f}' for value in values)} |"
        for (name, method), values in _curves(found)
    )


def _row(found: Mapping[str, Any], method: str) -> str:
    absolute = [accuracy.percent(_mean(found, name, method)) for name in SEARCHED]
    relative = [f"{_normalized(found, name, method):.3f}" for name in SEARCHED]
    gains = [_say(_gains(found, method, is_normalized=is_normalized)) for is_normalized in (False, True)]
    return f"| {method.replace('_', ' ')} | {' | '.join(absolute)} | {gains[0]} | {' | '.join(relative)} | {gains[1]} |"


def _say(gains: Sequence[float]) -> str:
    return ", ".join(f"{100 * gain:+.1f}" for gain in gains)


def _verdict(found: Mapping[str, Any]) -> str:
    told = []
    for is_normalized, what in ((False, "absolute"), (True, "normalized")):
        gains = {method: _gains(found, method, is_normalized=is_normalized) for method in METHODS}
        better = [method for method, of_seeds in gains.items() if min(of_seeds) > 0]
        worse = [method for method, of_seeds in gains.items() if max(of_seeds) < 0]
        told.append(f"in {what} accuracy L-LoRA merges better by {_list(better)}, worse by {_list(worse)}")
    half = 100 * accuracy.half_width(_runs(found, "lora")[0]["individual"])
    n_seeds = len(_runs(found, "lora"))
    seeds = "one seed" if n_seeds == 1 else f"with each of {n_seeds} seeds"
    return f"**Finding** ({seeds}): {'; '.join(told)}.\nHalf an interval of one mean is {half:.1f} points."


def _list(methods: Sequence[str]) -> str:
    return ", ".join(method.replace("_", " ") for method in methods) or "no method"


def _best_validation(found: Mapping[str, Any], technique: str) -> float:
    return max(accuracy.mean(one["validation"]) for one in found["searched"] if one["technique"] == technique)


def _gains(found: Mapping[str, Any], method: str, *, is_normalized: bool) -> list[float]:
    """Return L-LoRA minus LoRA, seed by seed."""
    of_both = [
        [
            accuracy.normalized(_of(run, method), run["individual"])
            if is_normalized
            else accuracy.mean(_of(run, method))
            for run in _runs(found, name)
        ]
        for name in ("linearized_lora", "lora")
    ]
    return [one - other for one, other in zip(*of_both, strict=True)]
