"""The API's door: while it is open, lost jobs are made up for even when no worker runs."""

from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.config import load_settings
from app.db import migrate
from app.db.tables import Job, utc_now
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind, JobState, ResourceClass
from app.main import create_app
from app.services import jobs, running
from app.services.actors import Actor
from app.services.running import WorkerIdentity
from tests.waiting import wait_until

ACTOR = Actor()


def test_a_job_whose_worker_is_gone_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings(home=tmp_path / "home", reap_seconds=0.02)
    migrate.upgrade(settings.database_url)
    app = create_app(settings)
    sessions = app.state.wiring.sessions
    with sessions.begin() as session:
        job = jobs.add(
            session,
            ACTOR,
            kind=JobKind.MERGE,
            spec={},
            resource_class=ResourceClass.CPU,
            inputs=(),
            max_attempts=3,
            timeout_seconds=60,
        )
    worker = WorkerIdentity(new_id("wrk"), "gone", tuple(ResourceClass))
    assert running.claim(sessions, worker, lease_seconds=60.0) is not None
    with sessions.begin() as session:
        session.execute(update(Job).values(lease_until=utc_now() - timedelta(seconds=1)))

    with TestClient(app):
        wait_until(lambda: jobs.get(sessions, ACTOR, job.id).state is JobState.QUEUED)
