"""How far a row's softmax moves: kernels and torch take the same steps, and both come close to torch's own softmax."""

import pytest
import torch

from workers.numerics import fused, importance


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 3), (7, 768), (2, 1000), (1, 4097)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_kernel_and_torch_give_the_same_bits_near_those_of_a_softmax(shape: tuple[int, int], size: float) -> None:
    assert fused.load()
    base, noise = size * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    theirs = base + 0.1 * noise
    found = fused.weigh_changes(theirs, base)
    assert torch.equal(found, importance._weigh_by_torch(theirs, base))
    one, other = (torch.log_softmax(rows.double(), -1) for rows in (theirs, base))
    divergence = (one.exp() * (one - other)).sum(-1, keepdim=True).clamp_min(0.0)
    expected = (theirs.double() - base).abs() * divergence
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=float(expected.max()) * 1e-7 + 1e-15)


def test_no_rows_have_no_importance() -> None:
    assert importance.weigh_changes(torch.empty(0, 4), torch.empty(0, 4)).shape == (0, 4)
