"""What lies at a URI, as it was when it was looked at: enough to notice any later change without reading the bytes."""

from app.domain.checkpoints import Value


class SourceFile(Value):
    """One file: `mtime_ns` and `inode` of a local file, `etag` of an object in S3."""

    path: str  # relative to the URI, with forward slashes; of a single file its name
    size_bytes: int
    mtime_ns: int | None = None
    inode: int | None = None
    etag: str | None = None


class SourceListing(Value):
    """The files below a URI, sorted by path; `is_file` when the URI names one file, not a folder."""

    is_file: bool
    files: tuple[SourceFile, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size_bytes for file in self.files)
