"""A job's inputs on this machine: a checkpoint's files in a folder, checked or fetched."""

from collections.abc import Callable
from dataclasses import dataclass

from app.db import checkpoints as checkpoint_rows
from app.db.tables import Checkpoint
from app.domain.checkpoints import LocalCheckpoint, Manifest
from app.domain.errors import InputChanged
from app.domain.needs import find_ranges, within_ranges
from app.domain.sources import SourceListing
from app.services.running import Keepers
from app.storage.uris import ObjectUri, parse_uri


def local(keepers: Keepers, checkpoint_id: str, is_wanted: Callable[[str], bool] = lambda _: True) -> LocalCheckpoint:
    """Return a ready checkpoint with a folder of its files; no transaction is open while bytes move.

    is_wanted: of its path; a file that need not be brought here is not.

    Raises: InputChanged when there is no such checkpoint any more, or a referenced file is not the one that was
    registered; ArtifactGone, OutOfDisk, Unavailable from the store.
    """
    row = _find(keepers, checkpoint_id)
    if row.uri is None:
        files = [file for file in row.manifest.files if is_wanted(file.path)]
        folder = keepers.storage.fetch(files, watch=keepers.watch)
        return LocalCheckpoint(id=checkpoint_id, path=folder, manifest=row.manifest)
    keepers.sources.check(row.uri, row.listing, watch=keepers.watch)
    listing = row.listing
    if isinstance(parse_uri(row.uri), ObjectUri):
        wanted = tuple(file for file in listing.files if is_wanted(file.path))
        listing = SourceListing(is_file=listing.is_file and bool(wanted), files=wanted)
    path = keepers.sources.fetch(row.uri, listing, watch=keepers.watch)
    return LocalCheckpoint(id=checkpoint_id, path=path.parent if listing.is_file else path, manifest=row.manifest)


def is_remote(keepers: Keepers, checkpoint_id: str) -> bool:
    """Tell whether a checkpoint's bytes have to be moved to whoever reads them: they lie in a bucket.

    Raises: InputChanged when there is no such checkpoint any more.
    """
    row = _find(keepers, checkpoint_id)
    return keepers.storage.is_remote if row.uri is None else isinstance(parse_uri(row.uri), ObjectUri)


def local_tensors(keepers: Keepers, checkpoint_id: str, needed: frozenset[str]) -> LocalCheckpoint:
    """Return a ready checkpoint of which only some tensors need to be here: of what is remote, their bytes are fetched.

    Raises: as `local`.
    """
    row = _find(keepers, checkpoint_id)
    ranges = find_ranges(row.manifest, needed)
    paths = {one.path for one in ranges}
    if row.uri is None:
        files = [file for file in row.manifest.files if file.path in paths]
        folder = keepers.storage.fetch_ranges(files, ranges, watch=keepers.watch)
    elif isinstance(parse_uri(row.uri), ObjectUri):
        used = row.listing.model_copy(update={"files": tuple(one for one in row.listing.files if one.path in paths)})
        keepers.sources.check(row.uri, used, watch=keepers.watch)
        folder = keepers.sources.fetch_ranges(row.uri, row.listing, ranges, watch=keepers.watch)
    else:
        return local(keepers, checkpoint_id)
    whole = {path for path in paths if (folder / path).exists()}
    cut = [one for one in ranges if one.path not in whole]
    return LocalCheckpoint(id=checkpoint_id, path=folder, manifest=within_ranges(row.manifest, cut, whole))


@dataclass(frozen=True)
class _Found:
    """What the tables say of a ready checkpoint."""

    manifest: Manifest
    uri: str | None  # None: its bytes are in the store
    listing: SourceListing


def _find(keepers: Keepers, checkpoint_id: str) -> _Found:
    with keepers.sessions.read() as session:
        row = session.get(Checkpoint, checkpoint_id)
        if row is None or row.deleted_at is not None:
            raise InputChanged(f"{checkpoint_id} was deleted after this job was accepted; submit the job without it.")
        manifest = checkpoint_rows.load_manifest(session, checkpoint_id)
        if row.storage == "copy" or row.uri is None:
            return _Found(manifest, None, SourceListing(is_file=False, files=()))
        return _Found(manifest, row.uri, SourceListing.model_validate(row.sources))
