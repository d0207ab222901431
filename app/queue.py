"""The doorbell: one Celery message per job, which says that there is work of a resource class, and nothing else.

SQL is the truth: a lost, doubled or late message changes nothing. Used to send by the API and the reaper, and to
listen by the worker's door.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from celery import Celery
from celery.exceptions import CeleryError
from kombu import Queue
from kombu.exceptions import KombuError

from app.domain.jobs import ResourceClass

TASK_NAME = "amalgam.run_job"
POLL_SECONDS = 0.05  # of the filesystem broker, on the worker's side
STALE_SECONDS = 3600.0
AWAY_SECONDS = 3.0
VISIBILITY_TIMEOUT_SECONDS = 25 * 3600  # longer than any job may hold its message


class QueueAway(Exception):
    """The broker cannot be reached; the job stays queued and is found without its message."""


class JobQueue:
    """Sends the messages."""

    def __init__(self, broker_url: str) -> None:
        self._celery = make_celery(broker_url)
        self._celery.conf.broker_transport_options = {**self._celery.conf.broker_transport_options, **SENDER_OPTIONS}
        self._away_until = 0.0  # monotonic; a caller does not wait for a broker that was away a moment ago

    def send_job(self, job_id: str, resource_class: ResourceClass) -> None:
        """Tell the workers of a resource class that there is work. Raises: QueueAway."""
        if time.monotonic() < self._away_until:
            raise QueueAway(f"the broker was away less than {AWAY_SECONDS:g} s ago")
        try:
            with _translated():
                self._celery.send_task(TASK_NAME, args=[job_id], queue=str(resource_class), retry=False)
        except QueueAway:
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise

    def is_reachable(self) -> bool:
        """Tell whether the broker answers, within about a second."""
        try:
            with _translated(), self._celery.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=1)
        except QueueAway:
            return False
        return True

    def close(self) -> None:
        """Give the connections back."""
        self._celery.close()


def make_celery(broker_url: str) -> Celery:
    """Return the Celery application, for sending and for the worker."""
    is_local = urlsplit(broker_url).scheme == "filesystem"
    celery = Celery("amalgam", set_as_current=False)
    celery.conf.update(
        broker_url="filesystem://localhost" if is_local else broker_url,
        broker_transport="app.filebroker:Transport" if is_local else None,
        broker_transport_options=_local_options(broker_url) if is_local else REDIS_OPTIONS,
        broker_connection_timeout=2.0,
        broker_connection_max_retries=None,  # the worker goes on trying
        broker_connection_retry_on_startup=True,
        task_queues=[Queue(str(name), routing_key=str(name)) for name in ResourceClass],
        task_create_missing_queues=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        result_backend=None,
        task_acks_late=True,  # with a prefetch of one, no message hides behind a long job
        worker_prefetch_multiplier=1,
        task_reject_on_worker_lost=False,  # attempts are counted in SQL
        task_acks_on_failure_or_timeout=True,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # True strands the message
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        task_serializer="json",
        accept_content=["json"],
    )
    return celery


REDIS_OPTIONS: dict[str, Any] = {
    "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_keepalive": True,
    "socket_timeout": 5.0,  # a sender without one can hang for ever
    "socket_connect_timeout": 1.0,
    "health_check_interval": 25,
    "global_keyprefix": "amalgam:",
}


# A sender does not wait for a broker that is away: the job is found without its message.
SENDER_OPTIONS: dict[str, Any] = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}


def _local_options(broker_url: str) -> dict[str, Any]:
    folder = Path(unquote(urlsplit(broker_url).netloc + urlsplit(broker_url).path))
    folders = {name: folder / name for name in ("messages", "processed", "control")}
    for path in folders.values():
        path.mkdir(parents=True, exist_ok=True)
    _remove_stale(folders["messages"])
    return {
        "data_folder_in": str(folders["messages"]),
        "data_folder_out": str(folders["messages"]),
        "store_processed": True,
        "processed_folder": str(folders["processed"]),  # same file system: taking a message is a rename
        "control_folder": str(folders["control"]),
        "polling_interval": POLL_SECONDS,
    }


def _remove_stale(messages: Path) -> None:
    """Remove mailboxes that dead workers left, and messages half written when a sender died."""
    for pattern in ("*.pidbox.msg", "*.part"):
        for path in messages.glob(pattern):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, KombuError, CeleryError) as error:
        raise QueueAway(f"{type(error).__name__}: the broker cannot be reached") from error
