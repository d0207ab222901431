"""Multipart uploads that nobody completes: a process that was killed leaves them, invisible among the objects.

obstore neither lists nor aborts what it has not begun itself, so the two requests are made and signed here. Where the
credentials are not in the environment, a lifecycle rule of the bucket must do it (docs/operations.md).

Source: Amazon S3 API reference, "Authenticating Requests (AWS Signature Version 4)", ListMultipartUploads.
"""

import hashlib
import hmac
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import httpx
import structlog

from app.storage.buckets import Bucket, endpoint_of

NOTHING_SHA256 = hashlib.sha256(b"").hexdigest()
TIMEOUT_SECONDS = 30.0
GONE = 404
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    key: str
    id: str
    begun_at: datetime


def abort_uploads(bucket: Bucket, *, older_than_seconds: float) -> int:
    """Abort the multipart uploads below the bucket's prefix that were begun so long ago; return how many."""
    credentials = _Credentials.find()
    if credentials is None:
        return 0
    try:
        with httpx.Client(timeout=TIMEOUT_SECONDS) as client:
            caller = _Caller(client, f"{endpoint_of(credentials.region)}/{bucket.name}", credentials)
            old = [one for one in caller.list_uploads(bucket.prefix) if _age_seconds(one) >= older_than_seconds]
            for one in old:
                caller.call("DELETE", one.key, {"uploadId": one.id})
    except (httpx.HTTPError, httpx.InvalidURL, ElementTree.ParseError, ValueError) as error:
        # not allowed, not known or told otherwise there, or away: no worse for it
        log.warning("unfinished_uploads_not_swept", bucket=bucket.name, error=repr(error))
        return 0
    return len(old)


@dataclass(frozen=True)
class _Credentials:
    """The keys of the environment."""

    key_id: str
    secret: str
    token: str | None
    region: str

    @classmethod
    def find(cls) -> "_Credentials | None":
        """Return what the environment holds, if it holds any."""
        key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not key_id or not secret:
            return None
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return cls(key_id, secret, os.environ.get("AWS_SESSION_TOKEN"), region)

    def sign(self, method: str, url: str, query: str, at: datetime) -> dict[str, str]:
        """Return the headers of a request without a body (Signature Version 4)."""
        parts = urlsplit(url)
        moment, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
        headers = {"host": parts.netloc, "x-amz-content-sha256": NOTHING_SHA256, "x-amz-date": moment}
        if self.token:
            headers["x-amz-security-token"] = self.token
        named = ";".join(headers)  # in the order of names already
        listed = "".join(f"{name}:{value}\n" for name, value in headers.items())
        asked = "\n".join([method, parts.path, query, listed, named, NOTHING_SHA256])
        scope = f"{day}/{self.region}/s3/aws4_request"
        signed = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(asked.encode()).hexdigest()])
        key = f"AWS4{self.secret}".encode()
        for step in scope.split("/"):
            key = hmac.digest(key, step.encode(), "sha256")
        signature = hmac.digest(key, signed.encode(), "sha256").hex()
        credential = f"Credential={self.key_id}/{scope}"
        return {
            **headers,
            "authorization": f"AWS4-HMAC-SHA256 {credential}, SignedHeaders={named}, Signature={signature}",
        }


@dataclass(frozen=True)
class _Caller:
    """Sends signed requests to one bucket."""

    client: httpx.Client
    bucket_url: str
    credentials: _Credentials

    def list_uploads(self, prefix: str) -> Iterator[_Upload]:
        """Yield the unfinished uploads below a prefix."""
        markers: dict[str, str] = {}
        while True:
            below = {"prefix": f"{prefix}/"} if prefix else {}
            document = ElementTree.fromstring(self.call("GET", "", {"uploads": "", **below, **markers}))
            space = document.tag.partition("}")[0] + "}" if document.tag.startswith("{") else ""
            for found in document.iter(f"{space}Upload"):
                key, upload_id, begun = (
                    found.findtext(f"{space}{name}") or "" for name in ("Key", "UploadId", "Initiated")
                )
                yield _Upload(key, upload_id, datetime.fromisoformat(begun))
            if document.findtext(f"{space}IsTruncated") != "true":
                return
            markers = {
                "key-marker": document.findtext(f"{space}NextKeyMarker") or "",
                "upload-id-marker": document.findtext(f"{space}NextUploadIdMarker") or "",
            }

    def call(self, method: str, key: str, query: Mapping[str, str]) -> bytes:
        """Send a request without a body; return what came back. What is gone already is no fault. Raises: HTTPError."""
        encoded = "&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in sorted(query))
        url = f"{self.bucket_url}/{quote(key, safe='/~')}" if key else self.bucket_url
        headers = self.credentials.sign(method, url, encoded, datetime.now(UTC))
        answer = self.client.request(method, f"{url}?{encoded}", headers=headers)
        if not (method == "DELETE" and answer.status_code == GONE):
            answer.raise_for_status()
        return answer.content


def _age_seconds(upload: _Upload) -> float:
    begun_at = upload.begun_at if upload.begun_at.tzinfo else upload.begun_at.replace(tzinfo=UTC)
    return (datetime.now(UTC) - begun_at).total_seconds()
