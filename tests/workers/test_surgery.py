"""Surgery modules: what they compute, entry by entry, and where they are put."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from app.domain.errors import HeadMismatch, ModelNotRunnable
from app.domain.tasks import OwnHead
from tests.workers import tiny_bert
from workers import surgery
from workers.checkpoints.model import Models
from workers.evaluators.text_classification import open_
from workers.model_contract import Subject
from workers.surgery import FEATURES, SurgeryModule

Array = NDArray[np.float64]


def draw(rank: int, width: int, seed: int = 0) -> SurgeryModule:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)
    return SurgeryModule(down, up)


def by_hand(module: SurgeryModule, rows: Array) -> Array:
    """Return z − U ReLU(D z) of every row, in loops."""
    down, up = (matrix.double().numpy() for matrix in (module.down, module.up))
    found = rows.copy()
    for row in range(len(rows)):
        hidden = [max(0.0, sum(down[k, j] * rows[row, j] for j in range(module.width))) for k in range(len(down))]
        for j in range(module.width):
            found[row, j] -= sum(up[j, k] * hidden[k] for k in range(len(down)))
    return found


def test_a_module_subtracts_a_rectified_low_rank_product() -> None:
    module, rows = draw(2, 5), torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    np.testing.assert_allclose(module(rows).numpy(), by_hand(module, rows.double().numpy()), rtol=1e-5, atol=1e-5)


def test_a_module_worked_by_hand() -> None:
    module = SurgeryModule(torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5], [1.0]]))
    # D z = 3 − 2 · 1 = 1, so U·1 is subtracted; D z = 1 − 2 · 1 = −1 is cut to 0
    assert module(torch.tensor([[3.0, 1.0], [1.0, 1.0]])).tolist() == [[2.5, 0.0], [1.0, 1.0]]
    assert (module.width, module.n_values) == (2, 4)


def test_a_module_is_not_linear_so_that_no_weights_can_hold_it() -> None:
    module, row = draw(2, 5), torch.ones(5)
    assert not torch.allclose(module(-row), -module(row))


def test_a_module_of_any_leading_dimensions_acts_on_the_last() -> None:
    module, hidden = draw(2, 5), torch.randn(3, 4, 5)
    assert torch.equal(module(hidden)[1, 2], module(hidden[1, 2]))


def test_without_a_module_features_are_as_they_were() -> None:
    features = torch.ones
    assert surgery.correct(features, {"encoder.layer.0": draw(1, 2)}) is features


def test_features_of_another_width_are_refused() -> None:
    corrected = surgery.correct(lambda batch: torch.ones(len(batch), 4), {FEATURES: draw(1, 5)})
    with pytest.raises(HeadMismatch, match=r"'features' corrects a width of 5, the model gives 4"):
        corrected([0])


def test_a_block_runs_with_its_module_and_what_follows_sees_it(tmp_path: Path) -> None:
    base = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "base", num_hidden_layers=2))
    task = tiny_bert.make_task(tmp_path / "task", preprocessing={"max_tokens": 16})
    modules = {"encoder.layer.0": draw(2, 8), FEATURES: draw(3, 8, seed=1)}
    plain = open_(Subject(task, base, base), "test", Models())
    found = open_(Subject(task, base, base, modules), "test", Models())
    assert plain.features is not None
    assert found.features is not None

    def correct(_block: nn.Module, _arguments: object, output: torch.Tensor) -> torch.Tensor:
        return modules["encoder.layer.0"](output)

    plain.module.get_submodule("encoder.layer.0").register_forward_hook(correct)
    with torch.no_grad():
        expected = by_hand(modules[FEATURES], plain.features([0, 1]).double().numpy())
        np.testing.assert_allclose(found.features([0, 1]).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_what_a_block_gives_beside_its_representation_is_left_alone() -> None:
    assert surgery.with_first((torch.ones(2), "more"), torch.zeros(2))[1] == "more"
    assert surgery.first_of((torch.ones(2), "more")).tolist() == [1.0, 1.0]


def test_a_block_that_the_model_lacks_is_named(tmp_path: Path) -> None:
    base = tiny_bert.local(tiny_bert.make_encoder(tmp_path / "base"))
    task = tiny_bert.make_task(tmp_path / "task", preprocessing={"max_tokens": 16})
    with pytest.raises(ModelNotRunnable, match=r"'encoder\.layer\.7', which a BertModel does not have"):
        open_(Subject(task, base, base, {"encoder.layer.7": draw(1, 8)}), "test", Models())


def test_features_before_a_head_of_the_checkpoints_own_cannot_be_corrected(tmp_path: Path) -> None:
    base = tiny_bert.local(tiny_bert.make_classifier(tmp_path / "base", tiny_bert.CLASSES))
    task = tiny_bert.make_task(tmp_path / "task", head=OwnHead(kind="own"), preprocessing={"max_tokens": 16})
    with pytest.raises(HeadMismatch, match=r"the head is the checkpoint's own"):
        open_(Subject(task, base, base, {FEATURES: draw(1, 8)}), "test", Models())
