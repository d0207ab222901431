"""Copies to and from a GPU: pinned memory, not waited for, on streams of their own (transport.Copies).

What is computed runs on the thread's current stream. Each thread copies on two more, one for each direction, so that
the GPU's copy engines work beside it; events keep the order. Never run: there was no GPU (decision 0027).
"""

import threading
from dataclasses import dataclass, field

import torch
from torch import Tensor

from workers.transport import Shape, Wait


@dataclass(frozen=True)
class CudaCopies:
    """The copies of one GPU."""

    device: torch.device
    _streams: threading.local = field(default_factory=threading.local, init=False, repr=False, compare=False)

    def stage(self, n_elements: int) -> Tensor:
        """Return pinned memory, [n] float32."""
        return torch.empty(n_elements, pin_memory=True)

    def room(self, shape: Shape) -> Tensor:
        """Return memory of the GPU, [*shape] float32, that the copying stream may write at once."""
        with torch.cuda.stream(self._stream("in")):  # nothing that is still computed has had this memory
            room = torch.empty(shape, device=self.device)
        room.record_stream(self._computing)
        return room

    def begin_in(self, staged: Tensor, room: Tensor) -> Wait:
        """Begin a copy to the GPU; what is computed from now on waits for it.

        The buffer is free once the copy is done and what was to be computed before, too: so that a thread that only
        hands out work runs no further ahead than the ring is long, and holds no more of the GPU's memory.
        """
        copying, computing = self._stream("in"), self._computing
        with torch.cuda.stream(copying):
            room.copy_(staged, non_blocking=True)
        computing.wait_stream(copying)
        return _mark(computing)

    def begin_out(self, tensor: Tensor, staged: Tensor) -> Wait:
        """Begin a copy from the GPU, once the tensor is computed."""
        copying = self._stream("out")
        copying.wait_stream(self._computing)
        with torch.cuda.stream(copying):
            staged.copy_(tensor, non_blocking=True)
        tensor.record_stream(copying)
        return _mark(copying)

    @property
    def _computing(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)

    def _stream(self, direction: str) -> torch.cuda.Stream:
        found: torch.cuda.Stream | None = getattr(self._streams, direction, None)
        if found is None:
            found = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            setattr(self._streams, direction, found)
        return found


def _mark(stream: torch.cuda.Stream) -> Wait:
    """Return what waits for all that the stream has been given so far."""
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(stream)
    return done.synchronize
