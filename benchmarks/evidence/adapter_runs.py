"""How adapters of L-LoRA and of LoRA are trained, merged and measured; what came of it tells linearized.py.

First the setting of each technique is found on validation, then adapters of that setting are trained with several seeds
and merged by the paper's four ways.

Source: Tang et al. 2023, arXiv:2310.04742, section 5.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import JsonValue

from app.domain.adapters import AdapterSpace
from benchmarks.evidence import accuracy
from benchmarks.evidence.accuracy import Counts, plain
from benchmarks.evidence.laboratory import Laboratory, choose, round_robin
from benchmarks.evidence.merging import Lesson, Merges
from benchmarks.evidence.processes import Part
from benchmarks.evidence.training import Trained, Training

STEPS = 75
RANK_16: Mapping[str, Any] = {"rank": 16, "alpha": 32.0, "steps": STEPS}
SEARCHED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "lora": tuple({**RANK_16, "learning_rate": rate} for rate in (1e-3, 2e-3)),
    "linearized_lora": tuple({**RANK_16, "learning_rate": rate} for rate in (5e-3, 1e-2)),
}
SEEDS = (0, 1, 2)
SEARCH_SEED = 0
COEFFICIENTS = (0.2, 0.35, 0.5, 0.8)
TIES_COEFFICIENTS = (1.0, 2.0)
TREND_COEFFICIENTS = (0.5, 0.8)
N_SUBSETS = 2
LORAHUB: Mapping[str, Any] = {"budget": 40}
LORAHUB_EXAMPLES = 8
METHODS = ("average", "task_arithmetic", "ties", "lorahub")
SPACES: Mapping[str, AdapterSpace] = {"lora": "factors", "linearized_lora": "delta"}  # of LoraHub, as in the paper


def train(laboratory: Laboratory, run: Callable[[Sequence[Part]], None]) -> None:
    """Train every adapter that the experiment needs: a search, then the best settings with each seed."""
    n_models = (sum(map(len, SEARCHED.values())) + len(SEARCHED) * (len(SEEDS) - 1)) * len(laboratory.suite.tasks)
    print(f"{n_models} adapters of {STEPS} steps, about half a minute each on one core; those that are there stay")
    places = range(len(laboratory.suite.tasks))
    run(
        [
            partial(_train_one, technique=technique, setting=setting, seed=SEARCH_SEED, task=task)
            for technique, settings in SEARCHED.items()
            for setting in settings
            for task in places
        ]
    )
    searched = _search(laboratory)
    run(
        [
            partial(_train_one, technique=name, setting=_best(searched, name), seed=seed, task=task)
            for seed in SEEDS
            for name in SEARCHED
            for task in places
        ]
    )


def parts() -> Sequence[Part]:
    """Return what can be measured at once, what takes longest first."""
    runs = [partial(_measure_run, technique=name, seed=seed) for seed in SEEDS for name in SEARCHED]
    return [*runs, *(partial(_measure_trend, technique=name) for name in SEARCHED)]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Search, train, merge and measure; return everything as JSON."""
    searched = _search(laboratory)
    chosen = {name: _best(searched, name) for name in SEARCHED}
    runs = [_run(laboratory, name, chosen[name], seed) for seed in SEEDS for name in SEARCHED]
    trend = [_trend(laboratory, name, chosen[name]) for name in SEARCHED]
    return {"searched": searched, "chosen": chosen, "runs": runs, "trend": trend}


def _train_one(laboratory: Laboratory, *, technique: str, setting: Mapping[str, Any], seed: int, task: int) -> None:
    laboratory.trainer.train_all(Training(technique, setting, seed), [laboratory.suite.tasks[task]])


def _measure_run(laboratory: Laboratory, *, technique: str, seed: int) -> None:
    _run(laboratory, technique, _best(_search(laboratory), technique), seed)


def _measure_trend(laboratory: Laboratory, *, technique: str) -> None:
    _trend(laboratory, technique, _best(_search(laboratory), technique))


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
    lesson = Lesson("lorahub", LORAHUB, max_examples=LORAHUB_EXAMPLES, seed=seed, space=SPACES[technique])
    hub = merges.learn(lesson)
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
            "lorahub": {"coefficients": _coefficients(hub.told), "test": plain(hub.test)},
        },
        **({"of_factors": _merge_factors(merges)} if technique == "lora" else {}),
    }


def _merge_factors(merges: Merges) -> dict[str, Any]:
    """Return what LoRA's factors, merged one by one, score."""

    def measure(method: str, parameters: Mapping[str, Any], split: str) -> Counts:
        return merges.merge_adapters(method, parameters, split, space="factors")

    candidates = [{"scaling_coefficient": one} for one in COEFFICIENTS]
    best = max(candidates, key=lambda one: accuracy.mean(measure("task_arithmetic", one, "validation")))
    return {
        "average": {"test": plain(measure("average", {}, "test"))},
        "task_arithmetic": {"parameters": best, "test": plain(measure("task_arithmetic", best, "test"))},
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
