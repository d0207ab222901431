"""Rows of checkpoints under concurrency: version numbers, and deleting while a job is being accepted."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import select

from app.db import artifacts, deletion
from app.db import checkpoints as rows
from app.db import models as model_rows
from app.db.engine import Sessions, make_engine
from app.db.migrate import upgrade
from app.db.models import AliasKey
from app.db.tables import Artifact, Checkpoint, JobInput
from app.domain.checkpoints import CheckpointKind, FileEntry, Manifest, TensorSpec
from app.domain.errors import NotFound, PreconditionFailed, ResourceInUse, UnknownCheckpoint
from app.domain.identifiers import new_id
from app.domain.jobs import JobKind, ResourceClass
from app.domain.registrations import AliasRequest
from app.domain.views.jobs import JobInputRef
from app.services import artifacts as artifact_service
from app.services import checkpoints as checkpoint_service
from app.services import jobs, models
from app.services.actors import Actor
from app.storage.local import LocalStorage

ACTOR = Actor(name="tester")
MANIFEST = Manifest(
    files=(FileEntry(path="model.safetensors", size_bytes=20, sha256="a" * 64),),
    tensors=(TensorSpec(name="w", dtype="F32", shape=(2,), file="model.safetensors", begin=12, end=20),),
    weights_digest="b" * 64,
)


@pytest.fixture
def sessions(database_url: str) -> Iterator[Sessions]:
    upgrade(database_url)
    engine = make_engine(database_url)
    yield Sessions(engine)
    engine.dispose()


def _add(sessions: Sessions, name: str = "m", base: str | None = None) -> str:
    with sessions.begin() as session:
        return rows.add_produced(
            session,
            ACTOR,
            name=name,
            kind=CheckpointKind.DENSE,
            manifest=MANIFEST,
            job_id=new_id("job"),
            artifact_id=new_id("art"),
            base_checkpoint_id=base,
            task=None,
            tags={},
        ).id


def _both(first: Callable[[], object], second: Callable[[], object]) -> list[BaseException | None]:
    """Run two functions at the same time and return what each raised."""
    with ThreadPoolExecutor(2) as pool:
        return [future.exception(30) for future in (pool.submit(first), pool.submit(second))]


def test_what_a_manifest_says_stands_in_the_row(sessions: Sessions) -> None:
    with sessions.read() as session:
        added = rows.view(rows.find(session, "default", _add(sessions)))
        assert rows.load_manifest(session, added.id) == MANIFEST
    assert (added.size_bytes, added.n_tensors, added.n_parameters, added.dtype) == (20, 1, 2, "F32")
    assert (added.content_digest, added.weights_digest) == (MANIFEST.digest, "b" * 64)


def test_concurrent_versions_of_a_name_differ(sessions: Sessions) -> None:
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda _: _add(sessions), range(16)))
    with sessions.read() as session:
        versions = sorted(session.scalars(select(Checkpoint.version).where(Checkpoint.id.in_(ids))))
    assert versions == list(range(1, 17))


def test_manifests_are_read_at_once_and_a_missing_one_is_named(sessions: Sessions) -> None:
    ids = [_add(sessions), _add(sessions)]
    with sessions.read() as session:
        assert rows.load_manifests(session, ids) == dict.fromkeys(ids, MANIFEST)
        with pytest.raises(NotFound, match="ckpt_missing has no manifest"):
            rows.load_manifests(session, [*ids, "ckpt_missing"])


def test_a_checkpoint_of_another_project_is_unknown(sessions: Sessions) -> None:
    checkpoint = _add(sessions)
    with sessions.read() as session:
        for ref in (checkpoint, "m", "m@1", f"sha256:{MANIFEST.digest}"):
            with pytest.raises(NotFound):
                rows.find(session, "other", ref)
            with pytest.raises(UnknownCheckpoint):
                rows.resolve(session, "other", [("/models/0", ref)])
        assert rows.find_tombstone(session, "other", checkpoint) is None


def test_a_job_accepted_while_its_input_is_deleted_never_has_a_deleted_input(sessions: Sessions) -> None:
    for _ in range(6):
        checkpoint = _add(sessions)
        together = threading.Barrier(2)

        def delete(checkpoint: str = checkpoint, together: threading.Barrier = together) -> None:
            together.wait()
            with sessions.begin() as session:
                deletion.delete_checkpoint(session, rows.find(session, "default", checkpoint, is_locked=True))

        def accept(checkpoint: str = checkpoint, together: threading.Barrier = together) -> None:
            together.wait()
            with sessions.begin() as session:
                (row,) = rows.resolve(session, "default", [("/checkpoint", checkpoint)])
                jobs.add(
                    session,
                    ACTOR,
                    kind=JobKind.EVALUATE,
                    spec={},
                    resource_class=ResourceClass.CPU,
                    inputs=[JobInputRef(role="model", position=0, checkpoint_id=row.id)],
                    max_attempts=1,
                    timeout_seconds=1,
                )

        refused, not_accepted = _both(delete, accept)
        assert (type(refused), not_accepted) == (ResourceInUse, None) or (refused, type(not_accepted)) == (
            None,
            UnknownCheckpoint,
        )
        with sessions.read() as session:
            has_input = session.scalar(select(JobInput.job_id).where(JobInput.checkpoint_id == checkpoint)) is not None
            is_deleted = session.get_one(Checkpoint, checkpoint).deleted_at is not None
        assert has_input != is_deleted


def test_of_two_who_make_the_same_alias_one_fails(sessions: Sessions) -> None:
    _add(sessions)
    condition = models.Condition(is_new=True)

    def make() -> None:
        models.put_alias(sessions, ACTOR, "m", "best", AliasRequest(version=1), condition)

    raised = _both(make, make)
    assert sorted(type(error).__name__ for error in raised) == sorted(["NoneType", PreconditionFailed.__name__])
    with sessions.read() as session:
        assert model_rows.get_alias(session, AliasKey("default", "m", "best")).revision == 1


def test_of_two_who_move_an_alias_from_the_same_revision_one_fails(sessions: Sessions) -> None:
    _add(sessions)
    _add(sessions)
    models.put_alias(sessions, ACTOR, "m", "best", AliasRequest(version=1), models.Condition(is_new=True))

    def move(version: int) -> None:
        models.put_alias(sessions, ACTOR, "m", "best", AliasRequest(version=version), models.Condition(revision=1))

    raised = _both(lambda: move(1), lambda: move(2))
    assert sorted(type(error).__name__ for error in raised) == sorted(["NoneType", PreconditionFailed.__name__])


def test_deleting_twice_is_not_found(sessions: Sessions) -> None:
    checkpoint = _add(sessions)

    def delete() -> None:
        with sessions.begin() as session:
            deletion.delete_checkpoint(session, rows.find(session, "default", checkpoint, is_locked=True))

    raised = _both(delete, delete)
    assert sorted(type(error).__name__ for error in raised) == sorted(["NoneType", NotFound.__name__])


def test_deleting_a_checkpoint_and_its_artifact_at_once_deletes_both(sessions: Sessions, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "store")
    for _ in range(6):
        checkpoint = _add(sessions)
        with sessions.begin() as session:
            artifact = artifacts.add(
                session, ACTOR, kind="checkpoint", job_id=None, checkpoint_id=checkpoint, files=MANIFEST.files
            ).id
            session.get_one(Checkpoint, checkpoint).artifact_id = artifact
        raised = _both(
            partial(artifact_service.delete, sessions, storage, ACTOR, artifact),
            partial(checkpoint_service.delete, sessions, storage, ACTOR, checkpoint, if_revision=None),
        )
        assert all(error is None or isinstance(error, NotFound) for error in raised)
        with sessions.read() as session:
            assert session.get(Artifact, artifact) is None
            assert session.get_one(Checkpoint, checkpoint).deleted_at is not None
            assert deletion.find_unnamed(session, [MANIFEST.files[0].sha256]) == [MANIFEST.files[0].sha256]
