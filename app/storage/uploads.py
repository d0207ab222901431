"""Multipart uploads that nobody completes: a process that was killed leaves them, invisible among the objects.

obstore neither lists nor aborts what it has not begun itself; botocore does, with the credentials it finds as usual.
"""

import os
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from app.storage.buckets import Bucket

if TYPE_CHECKING:
    from botocore.client import BaseClient

CONNECT_SECONDS = 3.0
log = structlog.get_logger(__name__)


def abort_uploads(bucket: Bucket, *, older_than_seconds: float) -> int:
    """Abort the multipart uploads below the bucket's prefix that no part has come to for so long; return how many.

    One that still grows is let be, however long ago it was begun: a merge may take longer than any grace.

    Where that is not allowed, or the bucket is away, the log says so, and a later sweep tries again.
    """
    # imported here: it takes a quarter of a second, and who answers requests never sweeps
    from botocore.config import Config  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from botocore.session import get_session  # noqa: PLC0415

    prefix = f"{bucket.prefix}/" if bucket.prefix else ""
    n_aborted = 0
    try:
        config = Config(connect_timeout=CONNECT_SECONDS, retries={"total_max_attempts": 2})
        client = get_session().create_client("s3", region_name=os.environ.get("AWS_REGION"), config=config)
        for page in client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket.name, Prefix=prefix):
            for upload in page.get("Uploads", ()):
                age_seconds = _age_seconds(upload["Initiated"])
                if age_seconds >= older_than_seconds:
                    age_seconds = _age_seconds(_last_sign_of(client, bucket.name, upload))
                if age_seconds >= older_than_seconds:
                    client.abort_multipart_upload(Bucket=bucket.name, Key=upload["Key"], UploadId=upload["UploadId"])
                    n_aborted += 1
    except (BotoCoreError, ClientError) as error:
        log.warning("unfinished_uploads_not_swept", bucket=bucket.name, error=repr(error))
    return n_aborted


def _last_sign_of(client: "BaseClient", bucket: str, upload: dict[str, Any]) -> datetime:  # as botocore lists it
    """Return when the newest part of an upload came, or when it was begun."""
    pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
    moments: list[datetime] = [part["LastModified"] for page in pages for part in page.get("Parts", ())]
    return max([upload["Initiated"], *moments])


def _age_seconds(moment: datetime) -> float:
    return (datetime.now(UTC) - moment).total_seconds()
