"""A job's inputs on this machine: a checkpoint's files in a folder, checked or fetched."""

from collections.abc import Callable
from typing import Any

from app.db import checkpoints as checkpoint_rows
from app.db.tables import Checkpoint
from app.domain.checkpoints import FileEntry, LocalCheckpoint, Manifest
from app.domain.errors import InputChanged
from app.domain.sources import SourceListing
from app.services.running import Keepers


def local(
    keepers: Keepers, checkpoint_id: str, is_wanted: Callable[[FileEntry], bool] = lambda _: True
) -> LocalCheckpoint:
    """Return a ready checkpoint with a folder of its files; no transaction is open while bytes move.

    is_wanted: files that need not be brought here from the store are not.

    Raises: NotFound when there is no such checkpoint; InputChanged when a referenced file is not the one that was
    registered; ArtifactGone, OutOfDisk, Unavailable from the store.
    """
    with keepers.sessions.read() as session:
        row = session.get(Checkpoint, checkpoint_id)
        if row is None or row.deleted_at is not None:
            raise InputChanged(f"{checkpoint_id} was deleted after this job was accepted; submit the job without it.")
        manifest = checkpoint_rows.load_manifest(session, checkpoint_id)
        uri, storage_kind, listing = row.uri, row.storage, row.sources
    if storage_kind == "copy" or uri is None:
        folder = keepers.storage.fetch([file for file in manifest.files if is_wanted(file)], watch=keepers.watch)
        return LocalCheckpoint(id=checkpoint_id, path=folder, manifest=manifest)
    return _referenced(keepers, checkpoint_id, uri, listing, manifest)


def _referenced(
    keepers: Keepers, checkpoint_id: str, uri: str, listing: dict[str, Any] | None, manifest: Manifest
) -> LocalCheckpoint:
    registered = SourceListing.model_validate(listing)
    keepers.sources.check(uri, registered, watch=keepers.watch)
    path = keepers.sources.fetch(uri, registered, watch=keepers.watch)
    return LocalCheckpoint(id=checkpoint_id, path=path.parent if registered.is_file else path, manifest=manifest)
