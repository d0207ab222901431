"""The tables of the page: which models are merged, and by which methods."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.domain.catalog import load_catalog
from benchmarks.evidence.training import Trainer, Training
from benchmarks.suite.inputs import Suite, open_suite
from benchmarks.suite.recipes import merges_all

INDIVIDUAL = "individual"
WITH = "+"  # between a method and a post-step, in the name of a row
CHOSEN = Path(__file__).parents[2] / "docs" / "evidence" / "linearized_lora.json"  # settings of the adapters' training
PAIR = ("movie_sent", "product_sent")  # both tell praise from blame
N_TASKS = 5


@dataclass(frozen=True)
class Group:
    """One table. A row's name is the group's folder and the method's name."""

    folder: str  # below docs/suite, of rows of the same models; empty: docs/suite itself
    title: str
    told: str
    rows: tuple[str, ...]  # references, then methods, or method+post-step
    open: Callable[[Path], Suite]  # of the folder that keeps trained models

    def name(self, row: str) -> str:
        """Return the name of one of its rows among those of all groups."""
        return f"{self.folder}/{row}" if self.folder else row


@cache
def _open_all(folder: Path) -> Suite:
    return open_suite(folder, say=True)  # its models are read and hashed once in each process


@cache
def _open_adapters(folder: Path, technique: str) -> Suite:
    suite = _open_all(folder)
    setting = json.loads(CHOSEN.read_text(encoding="utf-8"))["chosen"][technique]
    trained = Trainer(suite, folder / "evidence" / "trained").train_all(Training(technique, setting))
    return Suite(suite.base, suite.tasks, tuple(one.checkpoint for one in trained))


@cache
def _open_pair(folder: Path) -> Suite:
    suite = _open_all(folder)
    return suite.only([place for place, task in enumerate(suite.tasks) if task.spec.name in PAIR])


GROUPS = (
    Group(
        "",
        "",
        "",
        (
            "pre-trained",
            INDIVIDUAL,
            "lora_extract",
            *(card.name for card in load_catalog().methods if merges_all(card, N_TASKS)),
        ),
        _open_all,
    ),
    Group(
        "",
        "Behind a method",
        "The same five models; a post-step, with its defaults, changes what the method merged, and the method's "
        "coefficient is chosen behind it.",
        (
            INDIVIDUAL,
            *(
                name
                for method in ("average", "task_arithmetic", "ties")
                for name in (method, *(f"{method}{WITH}{step.name}" for step in load_catalog().post_steps))
            ),
        ),
        _open_all,
    ),
    Group(
        "lora",
        "LoRA adapters",
        "An adapter of each task, trained as the [evidence](evidence.md) found best. Methods of dense models merge the "
        "updates (space `delta`).",
        (
            INDIVIDUAL,
            "average",
            "task_arithmetic",
            "ties",
            "tsv_m",
            "peru_lora",
            "knots",
            "core_space",
            "peft_combination",
        ),
        lambda folder: _open_adapters(folder, "lora"),
    ),
    Group(
        "linearized_lora",
        "Linearized adapters",
        "The same of L-LoRA; `linearized_lora` merges the changes of the factors, the others the updates.",
        (INDIVIDUAL, "average", "task_arithmetic", "ties", "linearized_lora"),
        lambda folder: _open_adapters(folder, "linearized_lora"),
    ),
    Group(
        "pair",
        "Two models",
        f"For methods that take no more: the models of `{PAIR[0]}` and `{PAIR[1]}`, measured on both tasks. "
        "`nearswap` and `arcee_fusion` take the first as the base model, and move it towards the second.",
        (INDIVIDUAL, "average", "task_arithmetic", "ties", "slerp", "nuslerp", "nearswap", "arcee_fusion"),
        _open_pair,
    ),
)


def group_of(name: str) -> tuple[Group, str]:
    """Return the group that a row is of, and its name there.

    Raises: ValueError for a name that no table has.
    """
    for group in GROUPS:
        for row in group.rows:
            if group.name(row) == name:
                return group, row
    known = ", ".join(group.name(row) for group in GROUPS for row in group.rows)
    raise ValueError(f"found --method {name}, expected rows of the tables: {known}")
