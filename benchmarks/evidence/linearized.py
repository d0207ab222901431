"""L-LoRA: trained as well as LoRA, do linearized adapters merge better?

First the setting of each technique is found on validation, then adapters of that setting are trained with several seeds
and merged by the paper's four ways.

Source: Tang et al. 2023, arXiv:2310.04742, section 5.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from pydantic import JsonValue

from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import Counts, plain
from benchmarks.evidence.laboratory import Laboratory, choose, round_robin
from benchmarks.evidence.merging import Merges
from benchmarks.evidence.training import Trained, Training
from workers.figures import bars, lines, style

NAME = "linearized_lora"
TITLE = "L-LoRA against LoRA"

STEPS = 75
RANK_16: Mapping[str, Any] = {"rank": 16, "alpha": 32.0, "steps": STEPS}
SEARCHED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "lora": tuple({**RANK_16, "learning_rate": rate} for rate in (1e-3, 2e-3)),
    "linearized_lora": tuple({**RANK_16, "learning_rate": rate} for rate in (5e-3, 1e-2)),
}
SEEDS = (0,)
SEARCH_SEED = 0
COEFFICIENTS = (0.2, 0.35, 0.5, 0.8)
TIES_COEFFICIENTS = (1.0, 2.0)
TREND_COEFFICIENTS = (0.5, 0.8)
N_SUBSETS = 2
LORAHUB = {"budget": 40}
LORAHUB_EXAMPLES = 8
METHODS = ("average", "task_arithmetic", "ties", "lorahub")
LABELS = {"lora": "LoRA", "linearized_lora": "L-LoRA"}


def train(laboratory: Laboratory) -> None:
    """Train every adapter that the experiment needs: a search, then the best settings with each seed."""
    n_models = (sum(map(len, SEARCHED.values())) + len(SEARCHED) * (len(SEEDS) - 1)) * len(laboratory.suite.tasks)
    print(f"{n_models} adapters of {STEPS} steps, about half a minute each on one core; those that are there stay")
    searched = _search(laboratory)
    for name in SEARCHED:
        for seed in SEEDS:
            _train(laboratory, name, _best(searched, name), seed)


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Search, train, merge and measure; return everything as JSON."""
    searched = _search(laboratory)
    chosen = {name: _best(searched, name) for name in SEARCHED}
    runs = [_run(laboratory, name, chosen[name], seed) for seed in SEEDS for name in SEARCHED]
    trend = [_trend(laboratory, name, chosen[name]) for name in SEARCHED]
    return {"searched": searched, "chosen": chosen, "runs": runs, "trend": trend}


def _search(laboratory: Laboratory) -> list[dict[str, Any]]:
    return [
        {"technique": technique, "parameters": dict(setting), "validation": _validate(laboratory, technique, setting)}
        for technique, settings in SEARCHED.items()
        for setting in settings
    ]


def _validate(laboratory: Laboratory, technique: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    return {
        task.spec.name: list(one.validation)
        for task, one in zip(laboratory.suite.tasks, _train(laboratory, technique, setting, SEARCH_SEED), strict=True)
    }


def _train(laboratory: Laboratory, technique: str, setting: Mapping[str, Any], seed: int) -> tuple[Trained, ...]:
    return laboratory.trainer.train_all(Training(technique, setting, seed))


def _best(searched: Sequence[Mapping[str, Any]], technique: str) -> dict[str, Any]:
    settings = [one for one in searched if one["technique"] == technique]
    return dict(max(settings, key=lambda one: accuracy.mean(one["validation"]))["parameters"])


def _merges(laboratory: Laboratory, technique: str, setting: Mapping[str, Any], seed: int) -> Merges:
    return laboratory.merges([one.checkpoint for one in _train(laboratory, technique, setting, seed)])


def _run(laboratory: Laboratory, technique: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return what one seed's adapters score alone and merged, all of them."""
    print(f"measuring {technique}, seed {seed}", flush=True)
    merges = _merges(laboratory, technique, setting, seed)
    arithmetic = choose(merges, "task_arithmetic", [{"scaling_coefficient": one} for one in COEFFICIENTS])
    ties, ties_counts = _ties(merges, technique)
    hub, learned = merges.learn("lorahub", LORAHUB, max_examples=LORAHUB_EXAMPLES, seed=seed)
    return {
        "technique": technique,
        "seed": seed,
        "individual": plain(merges.individual("test")),
        "merged": {
            "average": {"test": plain(merges.merge("average", {}, "test"))},
            "task_arithmetic": {
                "parameters": arithmetic.parameters,
                "test": plain(merges.merge("task_arithmetic", arithmetic.parameters, "test")),
            },
            "ties": {"parameters": ties, "test": plain(ties_counts)},
            "lorahub": {"coefficients": _coefficients(learned), "test": plain(hub)},
        },
    }


def _ties(merges: Merges, technique: str) -> tuple[dict[str, Any], Counts]:
    """Return the coefficient chosen and the counts: of LoRA over the updates, of L-LoRA over the change of factors."""
    if technique == "lora":
        choice = choose(merges, "ties", [{"scaling_coefficient": one} for one in TIES_COEFFICIENTS])
        return choice.parameters, merges.merge("ties", choice.parameters, "test")

    def measure(coefficient: float, split: str) -> Counts:
        inner: dict[str, JsonValue] = {"method": "ties", "parameters": {"scaling_coefficient": coefficient}}
        return merges.merge_adapters("linearized_lora", {"merge": inner}, split)

    best = max(TIES_COEFFICIENTS, key=lambda one: accuracy.mean(measure(one, "validation")))
    return {"scaling_coefficient": best}, measure(best, "test")


def _coefficients(learned: Any) -> Any:  # Any: the report of a job
    return learned["mean_coefficients"]


def _trend(laboratory: Laboratory, technique: str, setting: Mapping[str, Any]) -> dict[str, Any]:
    """Return merges of 2, 3 and 4 adapters of the first seed, on their own tasks."""
    print(f"measuring {technique}, fewer tasks", flush=True)
    merges = _merges(laboratory, technique, setting, SEARCH_SEED)
    found: list[dict[str, Any]] = []
    for size in range(2, len(merges.all)):
        for models in round_robin(len(merges.all), size, N_SUBSETS):
            candidates = [{"scaling_coefficient": one} for one in TREND_COEFFICIENTS]
            choice = choose(merges, "task_arithmetic", candidates, models)
            found.append(
                {
                    "models": list(models),
                    "coefficient": choice.parameters["scaling_coefficient"],
                    "task_arithmetic": plain(merges.merge("task_arithmetic", choice.parameters, "test", models)),
                    "average": plain(merges.merge("average", {}, "test", models)),
                }
            )
    return {"technique": technique, "subsets": found}


# --- telling --------------------------------------------------------------------------------------------------------


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
{LORAHUB["budget"]} sets of coefficients on {LORAHUB_EXAMPLES} examples of each task. TIES sees LoRA's updates of the
weights, and L-LoRA's change of the factors. Accuracy on test in %, means over seeds; behind them L-LoRA minus LoRA,
in points, seed by seed.

| merged by | LoRA | L-LoRA | difference | LoRA, normalized | L-LoRA, normalized | difference |
|---|---:|---:|---|---:|---:|---|
{rows}

{_verdict(found)}

Fewer tasks, means over {N_SUBSETS} subsets of each size, seed {SEARCH_SEED}, normalized:

| merged tasks | {" | ".join(f"{size}" for size in _sizes(found))} |
|---|{"---:|" * len(_sizes(found))}
{_tell_trend(found)}
"""


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
