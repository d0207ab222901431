"""Adam, for minima whose gradient is known.

Source: Kingma, Ba 2014, arXiv:1412.6980, algorithm 1, with its default constants.
"""

from collections.abc import Callable, Iterator
from math import sqrt

import torch
from torch import Tensor

from workers.contract import Tick, ignore_tick

DECAY, SQUARE_DECAY = 0.9, 0.999
EPSILON = 1e-8
RUN_ELEMENTS = 1 << 17  # that are moved at a time, within the processor's cache


def descend(  # noqa: PLR0913 what is descended, and how far
    start: Tensor,
    gradient: Callable[[Tensor], Tensor],
    *,
    learning_rate: float,
    steps: int,
    bounds: tuple[float, float] | None = None,
    tick: Tick = ignore_tick,
) -> Tensor:
    """Return where Adam is after some steps; each moves an entry by about the learning rate at most, and ticks.

    start: any shape and floating dtype, not changed; gradient: of the point it is given, a tensor of its own, which is
    then used up, and may be of a wider dtype; bounds: after each step the point is projected into them, entry by entry,
    so that none is stuck at a bound with a gradient of zero.
    """
    point = start.clone(memory_format=torch.contiguous_format)
    mean, square = torch.zeros_like(point), torch.zeros_like(point)
    for step in range(1, steps + 1):
        slopes = gradient(point).reshape(-1)
        for run in _runs(point.numel()):
            some, own_mean, own_square = (held.view(-1)[run] for held in (point, mean, square))
            _move(some, own_mean, own_square, slopes[run].to(point.dtype), step=step, learning_rate=learning_rate)
        del slopes  # before the next gradient is made
        if bounds is not None:
            point.clamp_(*bounds)
        tick(step / steps)
    return point


class Walk:
    """Adam from zero, some rows at a time: what is held of a large matrix is its point in float64, the rest in float32.

    In place of the mean square its root is held, which has the range of the slopes, not of their squares.
    """

    def __init__(self, like: Tensor, *, learning_rate: float, epsilon: float = EPSILON) -> None:
        """like: any tensor of as many rows and columns on the device; epsilon: in the unit that slopes are given in."""
        self.point = like.new_zeros(like.shape, dtype=torch.float64)
        self._mean, self._root = (like.new_zeros(like.shape, dtype=torch.float32) for _ in range(2))
        self._learning_rate, self._epsilon = learning_rate, epsilon

    def move(self, rows: slice, slope: Tensor, *, step: int) -> None:
        """Take these rows' n-th step, from 1. slope: [rows, columns] float64 within float32's range, used up."""
        mean = self._mean[rows].double().lerp_(slope, 1.0 - DECAY)
        square = self._root[rows].double().square_().mul_(SQUARE_DECAY)
        root = square.addcmul_(slope, slope, value=1.0 - SQUARE_DECAY).sqrt_()
        self._mean[rows], self._root[rows] = mean, root
        divisor = torch.div(root, sqrt(1.0 - SQUARE_DECAY**step), out=slope).add_(self._epsilon)
        self.point[rows].addcdiv_(mean, divisor, value=-self._learning_rate / (1.0 - DECAY**step))


def _runs(n_elements: int) -> Iterator[slice]:
    return (slice(begin, begin + RUN_ELEMENTS) for begin in range(0, n_elements, RUN_ELEMENTS))


def _move(  # noqa: PLR0913 what Adam holds of a point
    point: Tensor, mean: Tensor, square: Tensor, slope: Tensor, *, step: int, learning_rate: float
) -> None:
    """Take a step in place; the slope is used up."""
    mean.lerp_(slope, 1.0 - DECAY)
    square.mul_(SQUARE_DECAY).addcmul_(slope, slope, value=1.0 - SQUARE_DECAY)
    root = torch.div(square, 1.0 - SQUARE_DECAY**step, out=slope).sqrt_().add_(EPSILON)
    point.addcdiv_(mean, root, value=-learning_rate / (1.0 - DECAY**step))
