"""The loop: steps, validations, early stop, what is kept, and going on after a kill."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from app.domain.errors import InvalidParameters, NotFinite
from tests.workers.training.trainables import (
    RUN,
    Line,
    make_bert,
    make_bert_task,
    make_line,
    record_steps,
    validate_with,
)
from workers.model_contract import Run, Trainable, Trained
from workers.training import loop
from workers.training.adapters import train_adapter
from workers.training.loop import optimize
from workers.training.parameters import LoraParameters, TrainingParameters
from workers.training.states import FileStates

SHORT = TrainingParameters(steps=20, learning_rate=0.05, batch_size=4)
VALIDATED = SHORT.model_copy(update={"validate_every": 5})
VALUES: dict[int, float | None] = {5: 0.5, 10: 0.75, 15: 0.75, 20: 0.25}


def train(parameters: TrainingParameters = SHORT, run: Run = RUN) -> tuple[Line, Trained]:
    module, trainable = make_line()
    module.weight.requires_grad = module.unused.requires_grad = True
    return module, optimize(trainable, {"weight": module.weight, "unused": module.unused}, parameters, run)


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"learning_rate": 0}, {"learning_rate": math.nan}, {"batch_size": 0}, {"weight_decay": -1},
     {"warmup_fraction": 1.5}, {"max_gradient_norm": 0}, {"learning_rte": 1e-5}, {"optimizer": "adam"},
     {"momentum": 1}, {"keep": "best"}, {"early_stopping_patience": 2}, {"validate_every": 0}],
)  # fmt: skip
def test_parameters_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TrainingParameters.model_validate(values)


def test_loss_goes_down_and_every_step_is_reported() -> None:
    run, steps = record_steps()
    _, trained = train(SHORT.model_copy(update={"steps": 200}), run)
    assert [(step.done, step.total) for step in steps] == [(index, 200) for index in range(1, 201)]
    assert [step.loss for step in steps] == list(trained.losses)
    assert trained.losses[-1] < 0.01 * trained.losses[0]
    assert (trained.n_steps, trained.kept_step, trained.n_parameters) == (200, 200, 1)


def test_what_the_loss_does_not_see_stays() -> None:
    assert train()[0].unused.item() == 7.0


def test_same_seed_same_weights_other_seed_others() -> None:
    small = SHORT.model_copy(update={"batch_size": 1, "max_gradient_norm": 1e6})
    once, again, other = (train(small, replace(RUN, seed=seed))[0].weight for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_training_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    train()
    assert torch.equal(torch.get_rng_state(), before)


def test_first_step_of_adamw_by_hand() -> None:
    # one step: the bias-corrected moments are g and g², so the update is lr · sign(g); a zero weight does not decay
    parameters = TrainingParameters(steps=1, learning_rate=0.25, batch_size=4, warmup_fraction=0)
    assert train(parameters)[0].weight.item() == pytest.approx(0.25)


def test_two_steps_of_sgd_by_hand() -> None:
    # loss = mean((w x − 2 x)²) over x = 1 … 4, so g = 15 (w − 2): −30, clipped to −1, then near −29, clipped to −1;
    # with momentum 0.5 the steps are 0.1 · 1 and 0.1 · (1 + 0.5)
    parameters = TrainingParameters(
        steps=2, learning_rate=0.1, batch_size=4, warmup_fraction=0, schedule="constant", optimizer="sgd",
        momentum=0.5, weight_decay=0,
    )  # fmt: skip
    assert train(parameters)[0].weight.item() == pytest.approx(0.25)


def test_a_loss_that_is_not_finite_is_refused_with_its_step() -> None:
    module, _ = make_line()
    module.weight.requires_grad = True
    trainable = Trainable(module, frozenset(), 4, lambda _: module.weight / 0.0)
    with pytest.raises(NotFinite, match=r"loss is nan at step 1 of 20. Lower learning_rate \(now 0.05\)"):
        optimize(trainable, {"weight": module.weight}, SHORT, RUN)


# --- validations ------------------------------------------------------------------------------------------------------


def test_validations_come_every_so_many_steps_and_at_the_end() -> None:
    run = replace(RUN, validate=validate_with({6: 0.1, 12: 0.2, 18: 0.3, 20: 0.4}))
    _, trained = train(SHORT.model_copy(update={"validate_every": 6}), run)
    assert [(one.step, one.value) for one in trained.validations] == [(6, 0.1), (12, 0.2), (18, 0.3), (20, 0.4)]


def test_validating_changes_nothing() -> None:
    validated, _ = train(VALIDATED, replace(RUN, validate=validate_with(VALUES)))
    assert torch.equal(validated.weight, train()[0].weight)


def test_dropout_is_on_while_training_and_off_while_measuring() -> None:
    module = make_bert()
    seen: list[tuple[str, bool]] = []

    def look(_: Any) -> None:
        seen.append(("step", any(part.training for part in module.modules())))

    def validate(step: int) -> Any:
        seen.append(("validation", any(part.training for part in module.modules())))
        return validate_with({2: 0.5, 4: 0.5})(step)

    parameters = LoraParameters(steps=4, batch_size=2, rank=2, dropout=0.5, validate_every=2)
    train_adapter(make_bert_task(module), parameters, replace(RUN, on_step=look, validate=validate))
    assert set(seen) == {("step", True), ("validation", False)}


def test_the_best_is_the_first_of_equals_and_its_weights_are_kept() -> None:
    best = VALIDATED.model_copy(update={"keep": "best"})
    kept, trained = train(best, replace(RUN, validate=validate_with(VALUES)))
    assert (trained.n_steps, trained.kept_step) == (20, 10)
    seen: dict[int, float] = {}
    module, trainable = make_line()
    module.weight.requires_grad = True
    run = replace(RUN, on_step=lambda step: seen.update({step.done: module.weight.item()}))
    optimize(trainable, {"weight": module.weight}, SHORT, run)
    assert kept.weight.item() == seen[10]


def test_lower_is_better_where_the_metric_says_so_and_an_undefined_value_is_the_worst() -> None:
    best = VALIDATED.model_copy(update={"keep": "best"})
    values: dict[int, float | None] = {5: None, 10: 0.5, 15: 0.25, 20: None}
    _, trained = train(best, replace(RUN, validate=validate_with(values, higher_is_better=False)))
    assert trained.kept_step == 15


def test_training_stops_when_patience_is_exhausted() -> None:
    patient = VALIDATED.model_copy(update={"early_stopping_patience": 1})
    _, trained = train(patient, replace(RUN, validate=validate_with(VALUES)))
    assert (trained.n_steps, trained.kept_step) == (15, 15)  # no better than at step 10
    _, trained = train(patient.model_copy(update={"keep": "best"}), replace(RUN, validate=validate_with(VALUES)))
    assert (trained.n_steps, trained.kept_step) == (15, 10)


def test_a_task_without_validation_split_is_refused() -> None:
    with pytest.raises(InvalidParameters, match="the task has no validation split"):
        train(VALIDATED)


# --- going on after a kill --------------------------------------------------------------------------------------------


class Killed(Exception):
    """In the place of a signal."""


def kill_at(step: int, run: Run) -> Run:
    def on_step(report: Any) -> None:
        if report.done == step:
            raise Killed

    return replace(run, on_step=on_step)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("killed_at", [1, 8, 20])
def test_a_killed_training_goes_on_and_ends_with_the_same_bits(tmp_path: Path, optimizer: str, killed_at: int) -> None:
    parameters = LoraParameters.model_validate(
        {"steps": 20, "batch_size": 3, "rank": 2, "dropout": 0.3, "optimizer": optimizer, "validate_every": 3,
         "early_stopping_patience": 4, "keep": "best", "learning_rate": 0.1}
    )  # fmt: skip
    values = {step: 0.1 * step if step < 10 else 0.0 for step in range(21)}
    states = FileStates(tmp_path, "key", every_seconds=0)
    run = replace(RUN, validate=validate_with(values), states=states)

    def train_bert(run: Run) -> Trained:
        return train_adapter(make_bert_task(make_bert()), parameters, run)

    whole = train_bert(replace(run, states=None))
    with pytest.raises(Killed):
        train_bert(kill_at(killed_at, run))
    resumed_run, steps = record_steps(run)
    resumed = train_bert(resumed_run)
    assert [step.done for step in steps] == list(range(killed_at, 21))  # the last state is that of the step before
    assert replace(resumed, adapter=None) == replace(whole, adapter=None)
    assert resumed.adapter is not None
    assert whole.adapter is not None
    for one, other in zip(resumed.adapter.updates, whole.adapter.updates, strict=True):
        assert torch.equal(one.a, other.a)
        assert torch.equal(one.b, other.b)


def test_a_training_that_had_ended_is_not_run_again(tmp_path: Path) -> None:
    run = replace(RUN, states=FileStates(tmp_path, "key", every_seconds=0))
    module, trained = train(SHORT, run)
    again_run, steps = record_steps(run)
    again, trained_again = train(SHORT, again_run)
    assert steps == []
    assert torch.equal(module.weight, again.weight)
    assert trained == trained_again


def test_dropout_draws_by_seed_and_step() -> None:
    loop._seed_step(0, 3)
    first = torch.rand(2)
    loop._seed_step(0, 3)
    assert torch.equal(torch.rand(2), first)
    loop._seed_step(0, 4)
    assert not torch.equal(torch.rand(2), first)
