"""The training loop of every technique: batches, loss, step, validation, early stop, and states to go on from.

Every draw is keyed by (seed, step), so a training that goes on from a saved state ends with the bytes of one that was
never killed. Which parameters learn, and in what form the result leaves, is the techniques' (workers/finetuning).
"""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from app.domain.errors import InvalidParameters, NotFinite
from app.domain.tasks import Measurement
from workers.model_contract import Run, Step, Trainable, Trained
from workers.training.batches import draw_batches
from workers.training.parameters import TrainingParameters
from workers.training.schedules import learning_rate_factor

Chosen = Mapping[str, torch.nn.Parameter]


def optimize(trainable: Trainable, chosen: Chosen, parameters: TrainingParameters, run: Run) -> Trained:
    """Train the chosen parameters in place, and leave them as they are to be kept.

    Raises: NotFinite when the loss is NaN or infinite, with the step; InvalidParameters where validations are asked for
        and the task has no split for them.
    """
    validate = _validation(parameters, run)
    optimizer = _make_optimizer(chosen, parameters)
    record = _Record()
    saved = None if run.states is None else run.states.load()
    if saved is not None:
        record = _restore(saved, chosen, optimizer)
    batches = itertools.islice(draw_batches(trainable.n_examples, parameters.batch_size, run.seed), record.done, None)
    with _own_draws(next(iter(chosen.values())).device):
        while record.done < parameters.steps and not record.is_exhausted(parameters.early_stopping_patience):
            _seed_step(run.seed, record.done)
            _set_learning_rate(optimizer, parameters, record.done)
            _descend(trainable.loss(next(batches)), chosen, optimizer, parameters, record)
            run.on_step(Step(done=record.done, total=parameters.steps, loss=record.losses[-1]))
            if validate is not None and _is_validated(record.done, parameters):
                found = _validate(trainable.module, validate, record.done)
                record.add(found, chosen if parameters.keep == "best" else {})
            if run.states is not None and run.states.is_due():
                run.states.save(_state(record, chosen, optimizer))
    return _finish(record, chosen, parameters)


@dataclass
class _Record:
    """What has happened so far."""

    losses: list[float] = field(default_factory=list)
    validations: list[Measurement] = field(default_factory=list)
    best: int = -1  # index into the validations
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    n_parameters: int = 0

    @property
    def done(self) -> int:
        """Steps done."""
        return len(self.losses)

    def is_exhausted(self, patience: int | None) -> bool:
        """Whether so many validations in a row were no better than the best before them."""
        return patience is not None and self.best >= 0 and len(self.validations) - 1 - self.best >= patience

    def add(self, validation: Measurement, chosen: Chosen) -> None:
        """Take a validation; of the best one, the first of equals, the chosen parameters are kept."""
        self.validations.append(validation)
        if self.best < 0 or _worth(validation) > _worth(self.validations[self.best]):
            self.best = len(self.validations) - 1
            self.best_weights = {name: value.detach().clone() for name, value in chosen.items()}


def _worth(measurement: Measurement) -> float:
    if measurement.value is None:
        return -math.inf
    return measurement.value if measurement.higher_is_better else -measurement.value


def _validation(parameters: TrainingParameters, run: Run) -> Callable[[int], Measurement] | None:
    if parameters.validate_every is None:
        return None
    if run.validate is None:
        raise InvalidParameters("validate_every: the task has no validation split. Leave it out, or add the split.")
    return run.validate


def _validate(module: torch.nn.Module, validate: Callable[[int], Measurement], step: int) -> Measurement:
    """Measure without dropout, and leave the module's parts in the modes they had."""
    learning = [part for part in module.modules() if part.training]
    module.eval()
    found = validate(step)
    for part in learning:
        part.training = True
    return found


def _is_validated(done: int, parameters: TrainingParameters) -> bool:
    return done == parameters.steps or done % (parameters.validate_every or parameters.steps) == 0


def _make_optimizer(chosen: Chosen, parameters: TrainingParameters) -> torch.optim.Optimizer:
    rate, decay = parameters.learning_rate, parameters.weight_decay
    if parameters.optimizer == "sgd":
        return torch.optim.SGD(
            chosen.values(), lr=rate, momentum=parameters.momentum, weight_decay=decay, foreach=False
        )
    return torch.optim.AdamW(chosen.values(), lr=rate, weight_decay=decay, foreach=False)


def _set_learning_rate(optimizer: torch.optim.Optimizer, parameters: TrainingParameters, done: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = parameters.learning_rate * learning_rate_factor(done, parameters)


def _descend(
    loss: Tensor, chosen: Chosen, optimizer: torch.optim.Optimizer, parameters: TrainingParameters, record: _Record
) -> None:
    _refuse_not_finite(loss, record.done + 1, parameters)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(chosen.values(), parameters.max_gradient_norm)
    optimizer.step()
    record.losses.append(loss.item())
    record.n_parameters = sum(value.numel() for value in chosen.values() if value.grad is not None)


def _refuse_not_finite(loss: Tensor, step: int, parameters: TrainingParameters) -> None:
    if not math.isfinite(loss.item()):
        raise NotFinite(
            f"The training loss is {loss.item()} at step {step} of {parameters.steps}. Lower learning_rate (now "
            f"{parameters.learning_rate}), or look for NaN in the base model."
        )


def _finish(record: _Record, chosen: Chosen, parameters: TrainingParameters) -> Trained:
    kept_step = record.done
    if parameters.keep == "best":
        kept_step = record.validations[record.best].step or 0
        _put(record.best_weights, chosen)
    return Trained(
        n_parameters=record.n_parameters,
        n_steps=record.done,
        kept_step=kept_step,
        losses=tuple(record.losses),
        validations=tuple(record.validations),
    )


# --- draws ----------------------------------------------------------------------------------------------------------


@contextmanager
def _own_draws(device: torch.device) -> Iterator[None]:
    """Let dropout draw from generators that are put back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_step(seed: int, step: int) -> None:
    digest = hashlib.sha256(f"{seed}\0dropout\0{step}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)


# --- states to go on from -------------------------------------------------------------------------------------------


def _state(record: _Record, chosen: Chosen, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {
        "weights": {name: value.detach() for name, value in chosen.items()},
        "optimizer": optimizer.state_dict(),
        "losses": record.losses,
        "validations": [one.model_dump(mode="json") for one in record.validations],
        "best": record.best,
        "best_weights": record.best_weights,
        "n_parameters": record.n_parameters,
    }


def _restore(state: Mapping[str, Any], chosen: Chosen, optimizer: torch.optim.Optimizer) -> _Record:
    _put(state["weights"], chosen)
    optimizer.load_state_dict(state["optimizer"])
    return _Record(
        losses=list(state["losses"]),
        validations=[Measurement.model_validate(one) for one in state["validations"]],
        best=state["best"],
        best_weights=dict(state["best_weights"]),
        n_parameters=state["n_parameters"],
    )


def _put(weights: Mapping[str, Tensor], chosen: Chosen) -> None:
    with torch.no_grad():
        for name, value in chosen.items():
            value.copy_(weights[name])
