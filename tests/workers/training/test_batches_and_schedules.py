import itertools

import pytest

from workers.training.batches import draw_batches
from workers.training.parameters import TrainingParameters
from workers.training.schedules import learning_rate_factor


@pytest.mark.parametrize(("n_examples", "batch_size"), [(10, 4), (3, 8), (5, 5), (1, 2)])
def test_each_pass_over_the_examples_uses_every_one_once(n_examples: int, batch_size: int) -> None:
    batches = list(itertools.islice(draw_batches(n_examples, batch_size, seed=0), 3 * n_examples))
    assert {len(batch) for batch in batches} == {batch_size}
    drawn = [index for batch in batches for index in batch]
    for start in range(0, len(drawn) - n_examples + 1, n_examples):
        assert sorted(drawn[start : start + n_examples]) == list(range(n_examples))


def test_learning_rate_rises_then_falls_as_half_a_cosine() -> None:
    parameters = TrainingParameters(steps=10, warmup_fraction=0.2)
    factors = [learning_rate_factor(step, parameters) for step in range(11)]
    assert factors[:3] == [0.5, 1.0, 1.0]
    assert factors[6] == pytest.approx(0.5)  # half way from step 2 to step 10
    assert factors[10] == pytest.approx(0.0)
    assert factors[2:] == sorted(factors[2:], reverse=True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("cosine", [1.0, 0.8535534, 0.5, 0.1464466]), ("linear", [1.0, 0.75, 0.5, 0.25]), ("constant", [1.0] * 4)],
)
def test_schedules_without_warmup(schedule: str, expected: list[float]) -> None:
    parameters = TrainingParameters.model_validate({"steps": 4, "warmup_fraction": 0, "schedule": schedule})
    assert [learning_rate_factor(step, parameters) for step in range(4)] == pytest.approx(expected)


def test_nothing_but_warmup() -> None:
    parameters = TrainingParameters(steps=4, warmup_fraction=1)
    assert [learning_rate_factor(step, parameters) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
