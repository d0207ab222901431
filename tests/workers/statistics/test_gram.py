import pytest
import torch
from torch import Tensor

from tests.workers.memory import MemorySource
from workers.statistics import gram


def make_models(n: int = 3, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 7), "b": (11,), "c": (), "d": (0, 3)}

    def draw() -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}

    return draw(), [draw() for _ in range(n)]


def flatten(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[name].flatten() for name in sorted(state)]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inner_products_of_flattened_task_vectors(dtype: torch.dtype) -> None:
    base, models = make_models(dtype=dtype)
    deltas = torch.stack([flatten(model) - flatten(base) for model in models])
    torch.testing.assert_close(
        gram.gram_matrix(MemorySource(base, models)), deltas @ deltas.T, rtol=1e-6, atol=1e-9, check_dtype=True
    )


def test_without_a_base_the_models_themselves_are_multiplied() -> None:
    _, models = make_models(2)
    flat = torch.stack([flatten(model) for model in models])
    torch.testing.assert_close(gram.gram_matrix(MemorySource(None, models)), flat @ flat.T)


def test_pieces_do_not_matter() -> None:
    base, models = make_models()
    whole = gram.gram_matrix(MemorySource(base, models))
    torch.testing.assert_close(gram.gram_matrix(MemorySource(base, models, piece_elements=4)), whole)


def test_sums_are_kept_in_float64() -> None:
    # 2^24 + 1 is no float32: 16,777,216 ones and one more, as squares of 4096 and 1
    model = {"a": torch.tensor([4096.0]), "b": torch.tensor([1.0])}
    assert gram.gram_matrix(MemorySource(None, [model])).item() == 16_777_217.0


def test_cosines_by_hand() -> None:
    # (3, 4) · (4, 3) = 24, norms 5 and 5; (3, 4) · (-3, -4) = -25
    vectors = torch.tensor([[3.0, 4.0], [4.0, 3.0], [-3.0, -4.0]], dtype=torch.float64)
    expected = torch.tensor([[1, 0.96, -1], [0.96, 1, -0.96], [-1, -0.96, 1]], dtype=torch.float64)
    torch.testing.assert_close(gram.cosines(vectors @ vectors.T), expected)


def test_cosines_of_a_zero_vector_are_undefined() -> None:
    found = gram.cosines(torch.tensor([[0.0, 0.0], [0.0, 4.0]], dtype=torch.float64))
    assert found.isnan().tolist() == [[True, True], [True, False]]


def test_cosines_stay_within_one_and_are_one_on_the_diagonal() -> None:
    vectors = torch.full((2, 7), 0.1, dtype=torch.float64)
    found = gram.cosines(vectors @ vectors.T)
    assert found.abs().max() <= 1.0
    assert found.diagonal().tolist() == [1.0, 1.0]
