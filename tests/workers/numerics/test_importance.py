"""How far a row's softmax moves: kernels and torch take the same steps, and both come close to torch's own softmax."""

import pytest
import torch

from workers.fusion import Importance
from workers.numerics import fused, importance


@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (5, 3), (7, 768), (2, 1000), (1, 4097)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 300.0])
def test_kernel_and_torch_give_the_same_bits_near_those_of_a_softmax(shape: tuple[int, int], size: float) -> None:
    assert fused.load()
    base, noise = size * torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    theirs = base + 0.1 * noise
    divergences = fused.diverge(theirs, base)
    assert torch.equal(divergences, importance._diverge(theirs, base))
    found = importance.weigh_changes(theirs, base)
    one, other = (torch.log_softmax(rows.double(), -1) for rows in (theirs, base))
    expected_divergence = (one.exp() * (one - other)).sum(-1, keepdim=True).clamp_min(0.0)
    expected = (theirs.double() - base).abs() * expected_divergence
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=float(expected.max()) * 1e-7 + 1e-15)


def test_no_rows_have_no_importance() -> None:
    assert importance.weigh_changes(torch.empty(0, 4), torch.empty(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("width", [1, 3, 700, 4097])
@pytest.mark.parametrize("start", [0, 1, 2999])
def test_any_run_is_weighed_as_the_rows_are(width: int, start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(width)
    theirs, base = 10.0 * torch.randn(2, 5000 // width + 1, width, generator=generator)
    base[0, 0], theirs[0, 0] = -3e38, 3e38
    whole = importance.weigh_changes(theirs, base).view(-1)
    rows = Importance(0.0, importance.diverge(theirs, base).numpy(), width)
    run = slice(start, 4999)
    for _ in range(2):
        found = importance.weigh(theirs.view(-1)[run], base.view(-1)[run], rows, start=start)
        assert torch.equal(found, whole[run])
        monkeypatch.setattr(fused, "_loaded", [])
