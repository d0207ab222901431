"""The way to a device: what arrives is what was sent, in bounded memory, whatever fails and whoever stops."""

import threading
from contextlib import closing
from itertools import islice

import pytest
import torch
from torch import Tensor

from tests.workers.copies import staged
from workers.checkpoints.parallel import map_in_order
from workers.stored import StoredModels, send
from workers.transport import HOST

SECONDS = 30.0  # until a test that hangs says so


def _count(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def test_on_the_host_nothing_is_copied() -> None:
    tensor = _count((3, 2))
    assert HOST.send(tensor) is tensor
    assert HOST.fetch(tensor) is tensor
    assert HOST.read((3, 2), lambda out: out.copy_(tensor)).tolist() == tensor.tolist()


@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (16,), (17,), (5, 20), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("n_slots", [1, 2, 7])
def test_what_arrives_is_what_was_sent_and_comes_back(shape: tuple[int, ...], n_slots: int) -> None:
    transport, _ = staged(n_slots)
    there = transport.send(_count(shape))
    assert torch.equal(there, _count(shape))
    assert torch.equal(transport.fetch(there), _count(shape))
    assert torch.equal(transport.read(shape, lambda out: out.copy_(_count(shape))), _count(shape))


def test_what_was_sent_may_change_at_once_and_views_are_sent_as_they_are_seen() -> None:
    transport, _ = staged()
    tensor = _count((4, 6))
    there = transport.send(tensor.mT[1:3])
    tensor.zero_()
    assert torch.equal(there, _count((4, 6)).mT[1:3])
    assert torch.equal(transport.fetch(there.mT), _count((4, 6))[:, 1:3])


def test_a_copy_is_waited_for_only_when_its_buffer_is_needed_again() -> None:
    transport, copies = staged(n_slots=3)
    for number in range(3):
        transport.read((2,), lambda out, number=number: out.fill_(number))  # type: ignore[misc]
    assert copies.events == []
    transport.send(_count((2,)))
    assert copies.events == ["in"]


def test_buffers_come_round_in_the_order_of_their_copies() -> None:
    transport, _ = staged(n_slots=3)
    seen: list[int] = []

    def fill(out: Tensor) -> None:
        seen.append(out.zero_().data_ptr())

    for _ in range(6):
        transport.read((1,), fill)
    assert len(set(seen[:3])) == 3
    assert seen[3:] == seen[:3]


def test_larger_tensors_take_one_buffer_after_the_other_and_no_more_memory() -> None:
    transport, copies = staged(n_slots=2, slot_elements=10)
    transport.send(_count((95,)))
    assert len(copies.events) == 10 - 2  # two are still under way
    assert transport.ring.n_free == 2


def test_a_thread_waits_while_all_buffers_are_lent_and_goes_on_when_one_comes_back() -> None:
    transport, _ = staged(n_slots=1)
    is_lent, may_return, has_sent = threading.Event(), threading.Event(), threading.Event()

    def fill(out: Tensor) -> None:
        is_lent.set()
        may_return.wait(SECONDS)
        out.zero_()

    def hold() -> None:
        transport.read((1,), fill)

    def follow() -> None:
        transport.send(_count((40,)))
        has_sent.set()

    threads = [threading.Thread(target=hold), threading.Thread(target=follow)]
    threads[0].start()
    assert is_lent.wait(SECONDS)
    threads[1].start()
    assert not has_sent.wait(0.05)
    may_return.set()
    assert has_sent.wait(SECONDS)
    for thread in threads:
        thread.join(SECONDS)
    assert transport.ring.n_free == 1


@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_many_threads_share_few_buffers_without_mixing_them_up(n_slots: int) -> None:
    transport, _ = staged(n_slots, slot_elements=8)

    def there_and_back(number: int) -> bool:
        sent = torch.full((21,), float(number))
        read = transport.read((5,), lambda out: out.fill_(number))
        return torch.equal(transport.fetch(transport.send(sent)), sent) and bool((read == number).all())

    assert all(map_in_order(there_and_back, range(200), threads=8))
    assert transport.ring.n_free == n_slots


def test_what_cannot_be_read_leaves_its_buffer_behind() -> None:
    transport, _ = staged(n_slots=1)

    def fail(_out: Tensor) -> None:
        raise OSError("the disk")

    for _ in range(3):
        with pytest.raises(OSError, match="the disk"):
            transport.read((1,), fail)
    assert torch.equal(transport.send(_count((3,))), _count((3,)))


def test_a_copy_that_failed_is_an_error_of_whoever_needs_its_buffer() -> None:
    def fail() -> None:
        raise RuntimeError("an illegal memory access")

    transport, _ = staged(n_slots=1, on_wait=fail)
    transport.send(_count((1,)))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        transport.send(_count((1,)))
    assert transport.ring.n_free == 1


def test_a_stopped_merge_leaves_no_thread_waiting_and_all_buffers_free() -> None:
    transport, _ = staged(n_slots=2)
    found = map_in_order(lambda number: transport.send(_count((number,))), range(10_000), threads=4)
    with closing(found):
        assert [len(tensor) for tensor in islice(found, 5)] == [0, 1, 2, 3, 4]
    assert transport.ring.n_free == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("merge")]


def test_stored_models_are_read_into_the_buffers() -> None:
    transport, copies = staged(n_slots=1)
    models = _count((2, 12))

    def read(model: int, first: int, out: Tensor, _stride: int) -> None:
        out.view(-1).copy_(models[model][first : first + out.numel()])

    there = send(StoredModels((2, 12), read), transport)
    assert isinstance(there, StoredModels)
    assert torch.equal(torch.stack([*there]), models)
    assert there.reshape(2, 3, 4).read_block(1, slice(1, 2), slice(0, 4), 4).tolist() == [[16.0, 17.0, 18.0, 19.0]]
    assert len(copies.events) == 2  # each but the last
