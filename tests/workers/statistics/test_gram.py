import pytest
import torch
from torch import Tensor

from tests.workers.memory import MemorySource
from workers.numerics.programs import PRODUCT_BLOCK
from workers.statistics import gram
from workers.statistics.views import TensorSource


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


def _draw(shape: tuple[int, ...], n: int = 3) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(2)
    base, *models = [{"w": torch.randn(shape, generator=generator)} for _ in range(1 + n)]
    return base, models


def test_inner_products_tensor_by_tensor() -> None:
    base, models = make_models()
    found = gram.TensorGrams("angles").collect(MemorySource(base, models))
    assert sorted(found) == ["a", "b", "c"]  # "d" has no elements
    for name, products in found.items():
        deltas = torch.stack([(model[name] - base[name]).flatten() for model in models]).double()
        torch.testing.assert_close(torch.tensor(products, dtype=torch.float64), deltas @ deltas.T)


def test_without_a_base_model_the_models_are_multiplied() -> None:
    _, models = _draw((5,))
    vectors = torch.stack([model["w"] for model in models]).double()
    found = gram.TensorGrams("angles").collect(MemorySource(None, models))["w"]
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), vectors @ vectors.T)


@pytest.mark.parametrize("size", [100, 4096, 8192, 10_000])
@pytest.mark.parametrize("piece_elements", [1, 333, 4096, 5000, 8192])
def test_pieces_do_not_show_in_the_products_of_a_tensor(size: int, piece_elements: int) -> None:
    base, models = _draw((size,))
    whole = gram.TensorGrams("angles").collect(MemorySource(base, models))
    cut = gram.TensorGrams("angles").collect(MemorySource(base, models, piece_elements=piece_elements))
    assert cut == whole


@pytest.mark.parametrize("piece_elements", [1, 4, 5, 17, 1000])
def test_inner_products_column_by_column(piece_elements: int) -> None:
    base, models = _draw((7, 2, 3), n=2)
    source = MemorySource(base, models, piece_elements=piece_elements)
    found = gram.ColumnGrams("angles").collect(source)["w"]
    deltas = torch.stack([(model["w"] - base["w"]).view(7, 6) for model in models]).double()
    torch.testing.assert_close(found, torch.einsum("irc,jrc->cij", deltas, deltas))
    assert torch.equal(found, gram.ColumnGrams("angles").collect(MemorySource(base, models))["w"])


def test_tensors_of_one_dimension_have_no_columns() -> None:
    base, models = _draw((7,), n=2)
    assert gram.ColumnGrams("angles").collect(MemorySource(base, models)) == {}


def test_pieces_that_were_joined_give_the_same_bits() -> None:
    generator = torch.Generator().manual_seed(0)
    n_elements = 3 * PRODUCT_BLOCK + 1000
    models = [{"w": torch.randn(n_elements, generator=generator)} for _ in range(3)]
    for step in (100, 700, 5000, n_elements):
        source = TensorSource(base=None, models=models, weights=(1.0,) * 3, piece_elements=step)
        parts = list(source.map(lambda piece: gram.multiply(piece.tensor, piece.offset, piece.finetuned)))
        alone, joined = (gram._BlockSum(torch.zeros(3, 3, dtype=torch.float64)) for _ in range(2))
        for part in parts:
            alone.add(part)
        half = parts[0].join(parts[1 : len(parts) // 2])
        joined.add(half.join(parts[max(1, len(parts) // 2) :]))
        assert joined.finish() == alone.finish()
