"""A device that is none: copies within the host that behave as a GPU's may, as late and as early as they can."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.transport import CPU, Shape, Staged, Wait


@dataclass(frozen=True)
class WatchedCopies:
    """Copies to the device look at their buffer when they end, copies to the host write theirs only then.

    So a buffer that is used again too early, or read too early, shows. on_wait: is called before a copy ends.
    """

    on_wait: Callable[[], object] = lambda: None
    device: torch.device = CPU
    events: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def stage(self, n_elements: int) -> Tensor:
        """Return memory of the host."""
        return torch.full((n_elements,), torch.nan)

    def room(self, shape: Shape) -> Tensor:
        """Return memory."""
        return torch.full(shape, torch.nan)

    def begin_in(self, staged: Tensor, room: Tensor) -> Wait:
        """Copy now, and check when it is waited for that the buffer was left alone."""
        room.copy_(staged)
        given = staged.clone()

        def end() -> None:
            assert torch.equal(staged, given), "a buffer was written while it was being copied"
            self._say("in")

        return self._later(end)

    def begin_out(self, tensor: Tensor, staged: Tensor) -> Wait:
        """Copy when it is waited for."""
        staged.fill_(torch.nan)

        def end() -> None:
            staged.copy_(tensor)
            self._say("out")

        return self._later(end)

    def _later(self, end: Callable[[], None]) -> Wait:
        is_done: list[bool] = []

        def wait() -> None:
            if not is_done:
                self.on_wait()
                end()
                is_done.append(True)

        return wait

    def _say(self, event: str) -> None:
        with self._lock:
            self.events.append(event)


def staged(
    n_slots: int = 2, slot_elements: int = 16, *, on_wait: Callable[[], object] = lambda: None
) -> tuple[Staged, WatchedCopies]:
    """Return the way to the device, through few small buffers, and its copies."""
    copies = WatchedCopies(on_wait)
    return Staged(copies, n_slots, slot_elements), copies
