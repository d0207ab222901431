"""The way of numbers from the files' side of a machine to where matrices are worked on, and back.

`Host` is a machine whose processor does both: nothing is copied. `Staged` is a way to a device: through a ring of
buffers of the host, from which copies are begun and not waited for, so that one block is read while the one before it
travels and those before that are worked on. What a device's copies are is its own (workers/cuda.py).
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor

CPU = torch.device("cpu")
SLOTS = 8
SLOT_ELEMENTS = 1 << 21  # 8 MiB each

Shape = tuple[int, ...]
Fill = Callable[[Tensor], object]  # writes every element of the float32 tensor that it is given
Wait = Callable[[], object]


class Transport(Protocol):
    """Where code works on matrices, and how they get there; safe to share between threads."""

    @property
    def device(self) -> torch.device:
        """Where the code works."""

    def read(self, shape: Shape, fill: Fill) -> Tensor:
        """Return on the device what a function writes into memory of the host, [*shape] float32."""

    def send(self, tensor: Tensor) -> Tensor:
        """Return a float32 tensor of the host on the device; the host's may change as soon as this returns."""

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return a float32 tensor of the device on the host, once it is computed."""


@dataclass(frozen=True)
class Host:
    """The processor itself: there is no way to go. What is sent is the same tensor, not a copy."""

    device: torch.device = CPU

    def read(self, shape: Shape, fill: Fill) -> Tensor:
        """Return what the function writes."""
        out = torch.empty(shape)
        fill(out)
        return out

    def send(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor


HOST = Host()


class Copies(Protocol):
    """How a kind of device copies: begun here, done later, in the order in which code on the device needs them."""

    @property
    def device(self) -> torch.device:
        """Where to and from."""

    def stage(self, n_elements: int) -> Tensor:
        """Return memory of the host that copies can be begun from and to, [n] float32."""

    def room(self, shape: Shape) -> Tensor:
        """Return memory of the device, [*shape] float32."""

    def begin_in(self, staged: Tensor, room: Tensor) -> Wait:
        """Begin a copy to the device. Code on the device may be given the room at once.

        Returns what waits until the staged memory may be written again, and what the device had to do before is done.
        """

    def begin_out(self, tensor: Tensor, staged: Tensor) -> Wait:
        """Begin a copy to the host of what is being computed, and return what waits for it."""


@dataclass
class Slot:
    """A buffer, and the copy that was begun last."""

    buffer: Tensor  # [n] float32
    wait: Wait = lambda: None


class Ring:
    """Buffers that are lent one to a thread, and come round again: no more memory, and no more copies, than there are.

    A borrower waits for a buffer's last copy, not for its own, and while all are lent. Nobody who has a buffer waits
    for another, so that there is always one who goes on.
    """

    def __init__(self, buffers: list[Tensor]) -> None:
        self._free = deque(Slot(buffer) for buffer in buffers)
        self._returned = threading.Condition()

    @property
    def n_free(self) -> int:
        """How many buffers are not lent; copies may still be under way in them."""
        return len(self._free)

    @contextmanager
    def lend(self) -> Iterator[Slot]:
        """Lend the buffer that was returned first, nothing under way in it; it comes back whatever happens."""
        with self._returned:
            self._returned.wait_for(lambda: self._free)
            slot = self._free.popleft()
        try:
            slot.wait()
            yield slot
        finally:
            with self._returned:
                self._free.append(slot)
                self._returned.notify()


@dataclass(frozen=True)
class Staged:
    """The way to a device and back, through a ring of buffers."""

    copies: Copies
    n_slots: int = SLOTS
    slot_elements: int = SLOT_ELEMENTS
    ring: Ring = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        buffers = [self.copies.stage(self.slot_elements) for _ in range(self.n_slots)]
        object.__setattr__(self, "ring", Ring(buffers))

    @property
    def device(self) -> torch.device:
        """Where the code works."""
        return self.copies.device

    def read(self, shape: Shape, fill: Fill) -> Tensor:
        """Return on the device what the function writes, into a buffer if it fits into one."""
        size = prod(shape)
        if size > self.slot_elements:
            return self.send(HOST.read(shape, fill))
        room = self.copies.room(shape)
        with self.ring.lend() as slot:
            staged = slot.buffer[:size]
            fill(staged.view(shape))
            slot.wait = self.copies.begin_in(staged, room.view(-1))
        return room

    def send(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device, a buffer at a time."""
        room, flat = self.copies.room(tuple(tensor.shape)), tensor.reshape(-1)
        for run in self._runs(flat):
            with self.ring.lend() as slot:
                staged = slot.buffer[: len(flat[run])].copy_(flat[run])
                slot.wait = self.copies.begin_in(staged, room.view(-1)[run])
        return room

    def fetch(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the host, in memory of its own."""
        flat, found = tensor.reshape(-1), torch.empty(tensor.shape)
        for run in self._runs(flat):
            with self.ring.lend() as slot:
                staged = slot.buffer[: len(flat[run])]
                slot.wait = self.copies.begin_out(flat[run], staged)
                slot.wait()
                found.view(-1)[run] = staged
        return found

    def _runs(self, flat: Tensor) -> Iterator[slice]:
        return (slice(begin, begin + self.slot_elements) for begin in range(0, len(flat), self.slot_elements))
