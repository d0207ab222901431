"""A worker whose messages get lost, or arrive twice. Run as `python -m benchmarks.service.unreliable` by chaos.py."""

import os
import random
import sys
from unittest import mock

from app.domain.jobs import ResourceClass
from app.queue import JobQueue
from workers import main

DROPPED, DOUBLED, SEED = "AMALGAM_TEST_DROPPED", "AMALGAM_TEST_DOUBLED", "AMALGAM_TEST_SEED"


class UnreliableQueue(JobQueue):
    """A queue that loses messages and doubles others; fractions of all."""

    def __init__(self, broker_url: str, dropped: float, doubled: float, seed: int) -> None:
        super().__init__(broker_url)
        self._dropped, self._doubled = dropped, doubled
        self._random = random.Random(seed)
        self.n_dropped = self.n_doubled = 0

    def send_job(self, job_id: str, resource_class: ResourceClass) -> None:
        """Send the message once, twice, or not at all."""
        draw = self._random.random()
        if draw < self._dropped:
            self.n_dropped += 1
            return
        super().send_job(job_id, resource_class)
        if draw > 1.0 - self._doubled:
            self.n_doubled += 1
            super().send_job(job_id, resource_class)


def describe(dropped: float, doubled: float, seed: int) -> dict[str, str]:
    """Return the environment of such a worker."""
    return {DROPPED: str(dropped), DOUBLED: str(doubled), SEED: str(seed)}


def _open(broker_url: str) -> UnreliableQueue:
    asked = os.environ
    return UnreliableQueue(broker_url, float(asked[DROPPED]), float(asked[DOUBLED]), int(asked[SEED]))


if __name__ == "__main__":
    with mock.patch.object(main, "JobQueue", _open):
        sys.exit(main.main())
