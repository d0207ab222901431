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
from benchmarks.evidence.lessons import Lesson
from benchmarks.evidence.merging import Merges
from benchmarks.evidence.processes import Part
from benchmarks.evidence.training import Trained, Training
from benchmarks.suite.rows import read_row

RATES: Mapping[str, Sequence[float]] = {"lora": (1e-3, 2e-3, 4e-3), "linearized_lora": (2e-3, 5e-3, 1e-2)}
SHAPES = (
    (16, 75),
    (8, 75),
    (16, 150),
)  # rank and steps; the first with every learning rate, the others with the middle
SEARCHED: Mapping[str, Sequence[Mapping[str, Any]]] = {
    technique: tuple(
        {"rank": rank, "alpha": 2.0 * rank, "steps": steps, "learning_rate": rate}
        for place, (rank, steps) in enumerate(SHAPES)
        for rate in (rates if place == 0 else rates[1:2])
    )
    for technique, rates in RATES.items()
}
SEEDS = (0, 1, 2)
SEARCH_SEED = 0
# beside these were tried (2026-11-30), and never chosen: 0.2 and 1.2, 0.35 of two models, 0.8 of more than three; of
# TIES 0.35 and 2.8; of factors 0.2, 0.4 and 0.5
COEFFICIENTS: Mapping[float, Sequence[int]] = {0.35: (3, 4, 5), 0.5: (2, 3, 4, 5), 0.8: (2, 3)}  # with so many models
TIES_COEFFICIENTS = (0.7, 1.4)
FACTOR_COEFFICIENTS = (0.27, 0.32, 0.35)  # of sums of factors, which grow with the square
LORAHUB: Mapping[str, Any] = {"budget": 40}
LORAHUB_EXAMPLES = 5
METHODS = ("average", "task_arithmetic", "ties", "lorahub")
SPACES: Mapping[str, AdapterSpace] = {"lora": "factors", "linearized_lora": "delta"}  # of LoraHub, as in the paper


def train(laboratory: Laboratory, run: Callable[[Sequence[Part]], None]) -> None:
    """Train every adapter that the experiment needs: a search, then the best settings with each seed."""
    n_models = (sum(len(settings) for settings in SEARCHED.values()) + len(SEARCHED) * (len(SEEDS) - 1)) * len(
        laboratory.suite.tasks
    )
    print(f"{n_models} adapters, about half a minute each on one core; those that are there stay", flush=True)
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
    return [
        *(partial(_measure_run, technique=name, seed=seed) for seed in SEEDS for name in SEARCHED),
        *(partial(_measure_fewer, technique=name, seed=seed) for seed in SEEDS for name in SEARCHED),
    ]


def find(laboratory: Laboratory) -> dict[str, Any]:
    """Search, train, merge and measure; return everything as JSON."""
    searched = _search(laboratory)
    chosen = {name: _best(searched, name) for name in SEARCHED}
    runs = [_run(laboratory, name, chosen[name], seed) for seed in SEEDS for name in SEARCHED]
    fewer = [run for seed in SEEDS for name in SEARCHED for run in _fewer(laboratory, name, chosen[name], seed)]
    return {"searched": searched, "chosen": chosen, "runs": runs, "fewer": fewer, "ties_of_updates": _read_ties()}


def _read_ties() -> dict[str, Any]:
    """Return what TIES over the updates scores on the whole test splits, of the suite: both techniques, one seed."""
    return {technique: row["counts"] for technique in SEARCHED if (row := read_row(f"{technique}/ties")) is not None}


def _train_one(laboratory: Laboratory, *, technique: str, setting: Mapping[str, Any], seed: int, task: int) -> None:
    laboratory.trainer.train_all(Training(technique, setting, seed), [laboratory.suite.tasks[task]])


def _measure_run(laboratory: Laboratory, *, technique: str, seed: int) -> None:
    _run(laboratory, technique, _best(_search(laboratory), technique), seed)


def _measure_fewer(laboratory: Laboratory, *, technique: str, seed: int) -> None:
    _fewer(laboratory, technique, _best(_search(laboratory), technique), seed)


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


def _run(laboratory: Laboratory, technique: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return what one seed's adapters score alone and merged, all of them."""
    print(f"measuring {technique}, seed {seed}", flush=True)
    merges = laboratory.merges_in_brief([one.checkpoint for one in _train(laboratory, technique, setting, seed)])
    return {
        "technique": technique,
        "seed": seed,
        "individual": plain(merges.individual("test")),
        "merged": _merge(merges, technique, seed),
        **({"of_factors": _merge_factors(merges)} if technique == "lora" else {}),
    }


def _fewer(laboratory: Laboratory, technique: str, setting: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Return what 2, 3 and 4 of one seed's adapters score merged; each seed takes other ones."""
    print(f"measuring {technique}, seed {seed}, fewer tasks", flush=True)
    models = [one.checkpoint for one in _train(laboratory, technique, setting, seed)]
    alone = laboratory.merges_in_brief(models).individual("test")
    names = [task.spec.name for task in laboratory.suite.tasks]
    found = []
    for size in range(2, len(models)):
        places = round_robin(len(models), size, len(SEEDS))[SEEDS.index(seed)]
        merges = laboratory.merges_in_brief([models[place] for place in places], places)
        found.append(
            {
                "technique": technique,
                "seed": seed,
                "models": list(places),
                "individual": plain({names[place]: alone[names[place]] for place in places}),
                "merged": _merge(merges, technique, seed),
            }
        )
    return found


def _merge(merges: Merges, technique: str, seed: int) -> dict[str, Any]:
    """Return what all that can be merged scores by each of the paper's four ways."""
    candidates = [{"scaling_coefficient": one} for one in coefficients_of(len(merges.all))]
    arithmetic = choose(merges, "task_arithmetic", candidates)
    ties, ties_counts = _ties(merges, technique)
    lesson = Lesson("lorahub", LORAHUB, max_examples=LORAHUB_EXAMPLES, seed=seed, space=SPACES[technique])
    hub = merges.learn(lesson)
    return {
        "average": {"test": plain(merges.merge("average", {}, "test"))},
        "task_arithmetic": {
            "parameters": arithmetic.parameters,
            "test": plain(merges.merge("task_arithmetic", arithmetic.parameters, "test")),
        },
        "ties": {"parameters": ties, "test": plain(ties_counts)},
        "lorahub": {"coefficients": _coefficients(hub.told), "test": plain(hub.test)},
    }


def coefficients_of(n_models: int) -> list[float]:
    """Return the coefficients of task arithmetic that are tried with so many models."""
    return [one for one, sizes in COEFFICIENTS.items() if n_models in sizes]


def _merge_factors(merges: Merges) -> dict[str, Any]:
    """Return what LoRA's factors, merged one by one, score."""

    def measure(method: str, parameters: Mapping[str, Any], split: str) -> Counts:
        return merges.merge_adapters(method, parameters, split, space="factors")

    candidates = [{"scaling_coefficient": one} for one in FACTOR_COEFFICIENTS]
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
