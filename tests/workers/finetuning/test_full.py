import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from app.domain.errors import NotFinite
from workers.finetuning import full
from workers.model_contract import Step, Trainable

SHORT = full.FullParameters(steps=20, learning_rate=0.05, batch_size=4)


class Line(torch.nn.Module):
    """An embedding, a weight and a parameter that the loss never sees."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        self.weight = torch.nn.Parameter(torch.tensor(0.0))
        self.unused = torch.nn.Parameter(torch.tensor(7.0))


def make_trainable(module: Line) -> Trainable:
    def loss(batch: list[int]) -> Tensor:
        return ((module.weight * module.embedding[batch] - 2 * torch.arange(1.0, 5.0)[batch]) ** 2).mean()

    module.requires_grad_(requires_grad=False)
    return Trainable(module, frozenset({"embedding"}), 4, loss)  # type: ignore[arg-type]  # takes any sequence


def run(parameters: full.FullParameters = SHORT, seed: int = 0) -> tuple[Line, frozenset[str], list[Step]]:
    module = Line()
    steps: list[Step] = []
    trained = full.train.train(make_trainable(module), parameters, seed, steps.append)
    return module, trained, steps


def test_defaults_are_the_recipe() -> None:
    assert full.FullParameters().model_dump() == {
        "steps": 75,
        "learning_rate": 5e-5,
        "batch_size": 16,
        "weight_decay": 0.01,
        "warmup_fraction": 0.1,
        "max_gradient_norm": 1.0,
        "freeze_embeddings": True,
    }


@pytest.mark.parametrize(
    "values",
    [{"steps": 0}, {"learning_rate": 0}, {"learning_rate": math.nan}, {"batch_size": 0}, {"weight_decay": -1},
     {"warmup_fraction": 1.5}, {"max_gradient_norm": 0}, {"learning_rte": 1e-5}],
)  # fmt: skip
def test_parameters_outside_their_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        full.FullParameters.model_validate(values)


def test_loss_goes_down_and_every_step_is_reported() -> None:
    _, _, steps = run(full.FullParameters(steps=200, learning_rate=0.05, batch_size=4))
    assert [(step.done, step.total) for step in steps] == [(index, 200) for index in range(1, 201)]
    assert steps[-1].loss < 0.01 * steps[0].loss


def test_embeddings_stay_and_names_of_what_learned_are_returned() -> None:
    module, trained, _ = run()
    assert trained == {"weight"}
    assert module.embedding.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert module.unused.item() == 7.0


def test_embeddings_learn_when_asked() -> None:
    module, trained, _ = run(SHORT.model_copy(update={"freeze_embeddings": False}))
    assert trained == {"weight", "embedding"}
    assert module.embedding.tolist() != [1.0, 2.0, 3.0, 4.0]


def test_same_seed_same_weights_other_seed_others() -> None:
    small = SHORT.model_copy(update={"batch_size": 1, "max_gradient_norm": 1e6})
    assert torch.equal(run(small, seed=1)[0].weight, run(small, seed=1)[0].weight)
    assert not torch.equal(run(small, seed=1)[0].weight, run(small, seed=2)[0].weight)


def test_training_does_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


def test_first_step_of_adamw_by_hand() -> None:
    # one step: the bias-corrected moments are g and g², so the update is lr · sign(g); a zero weight does not decay
    module, _, _ = run(full.FullParameters(steps=1, learning_rate=0.25, batch_size=4, warmup_fraction=0))
    assert module.weight.item() == pytest.approx(0.25)


def test_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    parameters = full.FullParameters(steps=10, warmup_fraction=0.2)
    factors = [full.learning_rate_factor(step, parameters) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)  # half way from step 2 to step 10
    assert factors[10] == pytest.approx(0.0)
    assert factors[2:] == sorted(factors[2:], reverse=True)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_learning_rate_without_warmup_and_with_nothing_else(fraction: float) -> None:
    parameters = full.FullParameters(steps=4, warmup_fraction=fraction)
    factors = [full.learning_rate_factor(step, parameters) for step in range(4)]
    assert factors == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466] if fraction == 0 else [0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(("n_examples", "batch_size"), [(10, 4), (3, 8), (5, 5), (1, 2)])
def test_each_pass_over_the_examples_uses_every_one_once(n_examples: int, batch_size: int) -> None:
    batches = list(itertools.islice(full.draw_batches(n_examples, batch_size, seed=0), 3 * n_examples))
    assert {len(batch) for batch in batches} == {batch_size}
    drawn = [index for batch in batches for index in batch]
    for start in range(0, len(drawn) - n_examples + 1, n_examples):
        assert sorted(drawn[start : start + n_examples]) == list(range(n_examples))


def test_a_loss_that_is_not_finite_is_refused_with_its_step() -> None:
    module = Line()
    trainable = Trainable(module, frozenset(), 4, lambda _: module.weight / 0.0)
    with pytest.raises(NotFinite, match=r"loss is nan at step 1 of 20. Lower learning_rate \(now 0.05\)"):
        full.train.train(trainable, SHORT, 0, lambda _: None)
