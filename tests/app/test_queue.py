"""The doorbell: what is sent, over files and over Valkey, and what happens when nobody is there."""

import os
import threading
import time
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from app.domain.jobs import ResourceClass
from app.filebroker import Channel
from app.queue import TASK_NAME, JobQueue, QueueAway, make_celery
from tests import servers


@pytest.fixture
def broker_url(tmp_path: Path) -> str:
    return f"filesystem://{tmp_path / 'broker'}"


def receive(url: str, name: str) -> dict[str, Any] | None:
    """Take one message off a queue, as a worker would."""
    celery = make_celery(url)
    with celery.connection_for_read() as connection, connection.SimpleQueue(name) as queue:
        try:
            message = queue.get(timeout=2)
        except queue.Empty:
            return None
        message.ack()
        return {"task": message.headers["task"], "args": message.payload[0]}


def test_a_message_carries_the_job_s_id_alone(broker_url: str) -> None:
    JobQueue(broker_url).send_job("job_1", ResourceClass.GPU)
    assert receive(broker_url, "gpu") == {"task": TASK_NAME, "args": ["job_1"]}
    assert receive(broker_url, "cpu") is None


def test_a_message_is_a_file_that_is_gone_once_read(broker_url: str, tmp_path: Path) -> None:
    JobQueue(broker_url).send_job("job_1", ResourceClass.CPU)
    messages = list((tmp_path / "broker" / "messages").iterdir())
    assert [path.name.split(".", 1)[1] for path in messages] == ["cpu.msg"]
    receive(broker_url, "cpu")
    assert list((tmp_path / "broker").rglob("*.msg")) == []


def test_messages_over_valkey(redis_url: str) -> None:
    queue = JobQueue(redis_url)
    assert queue.is_reachable()
    queue.send_job("job_1", ResourceClass.IO)
    assert receive(redis_url, "io") == {"task": TASK_NAME, "args": ["job_1"]}
    queue.close()


def test_a_broker_that_is_away_is_said_so_and_not_waited_for_again() -> None:
    queue = JobQueue(f"redis://127.0.0.1:{servers.free_port()}/0")
    assert not queue.is_reachable()
    started = time.monotonic()
    with pytest.raises(QueueAway):
        queue.send_job("job_1", ResourceClass.CPU)
    assert time.monotonic() - started < 1.5
    started = time.monotonic()
    with pytest.raises(QueueAway, match="less than"):
        queue.send_job("job_2", ResourceClass.CPU)
    assert time.monotonic() - started < 0.1


def test_a_folder_that_cannot_be_written_is_away(broker_url: str, tmp_path: Path) -> None:
    queue = JobQueue(broker_url)
    for path in (tmp_path / "broker").iterdir():
        path.rmdir()
    (tmp_path / "broker").rmdir()
    (tmp_path / "broker").write_text("a file")
    with pytest.raises(QueueAway):
        queue.send_job("job_1", ResourceClass.CPU)


def test_what_dead_workers_left_is_removed_at_the_start(tmp_path: Path) -> None:
    messages = tmp_path / "broker" / "messages"
    messages.mkdir(parents=True)
    stale, fresh = messages / "1_a.worker.celery.pidbox.msg", messages / "2_b.worker.celery.pidbox.msg"
    for path in (stale, fresh):
        path.write_text("{}")
    long_ago = time.time() - 7200
    os.utime(stale, (long_ago, long_ago))
    make_celery(f"filesystem://{tmp_path / 'broker'}")
    assert [path.name for path in messages.iterdir()] == [fresh.name]


def test_many_readers_get_each_message_whole_and_once(broker_url: str, tmp_path: Path) -> None:
    celery = make_celery(broker_url)
    sent = {f"job_{number}" for number in range(60)}
    received: list[str] = []

    def read() -> None:
        with celery.connection_for_read() as connection:
            channel = connection.channel()
            assert isinstance(channel, Channel)
            quiet_since = time.monotonic()
            while time.monotonic() - quiet_since < 1.0:
                try:
                    message = channel._get("cpu")
                except Empty:
                    time.sleep(0.001)
                    continue
                quiet_since = time.monotonic()
                received.append(message["body"])

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    with celery.connection_for_write() as connection:
        channel = connection.channel()
        assert isinstance(channel, Channel)
        for body in sorted(sent):
            channel._put("cpu", {"body": body})
    for reader in readers:
        reader.join()

    assert sorted(received) == sorted(sent)


def test_the_worker_s_settings_are_those_that_matter(broker_url: str) -> None:
    conf = make_celery(broker_url).conf
    assert conf.task_acks_late is True
    assert conf.worker_prefetch_multiplier == 1
    assert conf.task_reject_on_worker_lost is False
    assert conf.worker_cancel_long_running_tasks_on_connection_loss is False
    assert conf.accept_content == ["json"]
    assert conf.result_backend is None
