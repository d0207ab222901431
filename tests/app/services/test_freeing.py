"""The sweep removes what nothing names, and never what somebody is about to name."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from app.db import artifacts, deletion
from app.domain.checkpoints import FileEntry
from app.domain.errors import Unavailable
from app.services import freeing
from app.services.actors import Actor
from app.storage.folders import ObjectFolder
from tests.app.api.house import House, open_house
from tests.app.storage.contents import write_folder


@pytest.fixture
def any_house(tmp_path: Path, database_url: str) -> Iterator[House]:
    """A service on SQLite, then on PostgreSQL."""
    with open_house(tmp_path / "house", database_url) as opened:
        yield opened


@pytest.fixture
def published(any_house: House, tmp_path: Path) -> list[FileEntry]:
    """Two files in the store that nothing names yet."""
    files = write_folder(tmp_path / "output", {"a.txt": b"a", "b.txt": b"b"})
    any_house.wiring.storage.publish(tmp_path / "output", files)
    return files


def _add(house: House, files: list[FileEntry]) -> None:
    with house.wiring.sessions.begin() as session:
        artifacts.add(session, Actor(), kind="report", job_id=None, checkpoint_id=None, files=files)


def _sizes(house: House, files: list[FileEntry]) -> list[int | None]:
    return [house.wiring.storage.size(file.sha256) for file in files]


def _age(house: House, file: FileEntry) -> None:
    at = time.time() - 5000
    os.utime(ObjectFolder(house.folder / "home" / "store").path(file.sha256), (at, at))


def test_the_sweep_spares_what_is_named_and_what_is_young(any_house: House, published: list[FileEntry]) -> None:
    _add(any_house, published[:1])
    wiring = any_house.wiring
    assert freeing.sweep(wiring.sessions, wiring.storage, grace_seconds=3600).n_deleted_objects == 0
    for file in published:
        _age(any_house, file)
    assert freeing.sweep(wiring.sessions, wiring.storage, grace_seconds=3600).n_deleted_objects == 1
    assert _sizes(any_house, published) == [1, None]


def test_what_is_published_again_while_the_sweep_looks_is_spared(
    any_house: House, published: list[FileEntry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in published:
        _age(any_house, file)
    look = deletion.find_unnamed

    def publish_then_look(session: Session, digests: Iterable[str]) -> list[str]:
        unnamed = look(session, digests)
        any_house.wiring.storage.publish(tmp_path / "output", published)  # another job, which has not committed yet
        return unnamed

    monkeypatch.setattr("app.db.deletion.find_unnamed", publish_then_look)
    report = freeing.sweep(any_house.wiring.sessions, any_house.wiring.storage, grace_seconds=3600)
    assert report.n_deleted_objects == 0
    _add(any_house, published)
    assert _sizes(any_house, published) == [1, 1]


def test_freeing_leaves_young_bytes_and_a_store_that_is_away_to_the_sweep(
    any_house: House, published: list[FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = any_house.wiring.storage
    digests = [file.sha256 for file in published]
    freeing.free_bytes(storage, digests)
    assert _sizes(any_house, published) == [1, 1]

    def refuse(*_arguments: object, **_options: object) -> int:
        raise Unavailable("the bucket is away")

    monkeypatch.setattr(type(storage), "delete", refuse)
    freeing.free_bytes(storage, digests)


def test_many_digests_are_looked_up_in_batches(
    any_house: House, published: list[FileEntry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freeing, "DIGESTS_AT_ONCE", 1)
    monkeypatch.setattr("app.db.deletion.DIGESTS_AT_ONCE", 1)
    _add(any_house, published[1:])
    wiring = any_house.wiring
    assert freeing.sweep(wiring.sessions, wiring.storage, grace_seconds=0).n_deleted_objects == 1
    assert _sizes(any_house, published) == [None, 1]
