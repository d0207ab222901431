"""Requests that we sign ourselves are signed as botocore signs them."""

from datetime import UTC, datetime
from unittest import mock

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from app.storage.uploads import _Credentials

AT = datetime(2026, 11, 30, 1, 2, 3, tzinfo=UTC)


@pytest.mark.parametrize("token", [None, "a-token"])
@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/bucket", "prefix=some%2Fprefix%2F&uploads="),
        ("DELETE", "/bucket/incoming/ab~%20c", "uploadId=x%2By%3D"),
    ],
)
def test_the_signature_is_botocores(method: str, path: str, query: str, token: str | None) -> None:
    url = f"https://s3.eu-west-1.amazonaws.com{path}"
    ours = _Credentials("AKID", "secret/key", token, "eu-west-1").sign(method, url, query, AT)
    request = AWSRequest(method=method, url=f"{url}?{query}")
    request.context["payload_signing_enabled"] = True
    with mock.patch("botocore.auth.get_current_datetime", return_value=AT.replace(tzinfo=None)):
        S3SigV4Auth(Credentials("AKID", "secret/key", token), "s3", "eu-west-1").add_auth(request)
    assert ours["authorization"] == request.headers["Authorization"]
