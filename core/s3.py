"""Objects in a bucket of any S3-compatible server. Endpoint, region and credentials are boto3's own business.

Knows boto3, which is imported here alone, when a store is first used. Of the protocol it asks for no more than all
servers have: no checksums in trailers (what is stored is checked by its own), and conditional writes where there are
any: of two that publish one name at once, a server without them keeps the second.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from colever.errors import StoreError, UsageError

PIECE = 16 * 2**20  # bytes of a part of a large upload; four are under way at once
WHOLE = 64 * 2**20  # bytes up to which a file is sent in one piece
CHUNK = 2**20
PASSING = {"InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout", "ConditionalRequestConflict"}
CREDENTIALS = "accepted: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile, that may list, read and write there"
REFUSED = {
    "NoSuchBucket": "there is no such bucket (accepted: one that was made; AWS_ENDPOINT_URL names the server)",
    "InvalidAccessKeyId": f"the server does not know the access key ({CREDENTIALS})",
    "SignatureDoesNotMatch": f"the secret key does not fit the access key ({CREDENTIALS})",
    "AccessDenied": f"access denied ({CREDENTIALS})",
    "403": f"access denied ({CREDENTIALS})",
    "ExpiredToken": f"the session token has expired ({CREDENTIALS})",
}


class S3Objects:
    """Contents below ``s3://BUCKET/PREFIX``."""

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        if "@" in parts.netloc or parts.query or not parts.netloc:
            raise UsageError("objects: accepted: s3://BUCKET/PREFIX, with nothing else in it; credentials are boto3's")
        self.bucket, self._prefix = parts.netloc, parts.path.strip("/")
        self.uri = f"s3://{self.bucket}/{self._prefix}".rstrip("/")
        self._lock, self._made = threading.Lock(), None

    def fetch(self, name: str, into: Path) -> bool:
        with self._reached():
            try:
                got = self._client.get_object(**self._at(name))
            except self._client.exceptions.NoSuchKey:
                return False
            with into.open("wb") as file:
                for chunk in got["Body"].iter_chunks(CHUNK):
                    file.write(chunk)
            return True

    def store(self, name: str, file: Path, *, once: bool = False) -> bool:
        if once and self.has(name):
            return False
        with self._reached(), file.open("rb") as content:
            if file.stat().st_size > WHOLE:
                self._client.upload_fileobj(content, self.bucket, self._at(name)["Key"], Config=_in_pieces())
                return True
            return self._put(name, content, once)

    def has(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with self._reached():
            try:
                self._client.head_object(**self._at(name))
            except ClientError as error:
                if _status(error) != 404:
                    raise
                return False
            return True

    def under(self, prefix: str) -> list[str]:
        whole, found = self._at(prefix)["Key"], set[str]()
        with self._reached():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self.bucket, Prefix=whole, Delimiter="/"):
                names = [p["Prefix"] for p in page.get("CommonPrefixes", ())]
                names += [o["Key"] for o in page.get("Contents", ())]
                found |= {name[len(whole) :].strip("/") for name in names}
        return sorted(found)

    def _put(self, name: str, content: Any, once: bool) -> bool:
        from botocore.exceptions import ClientError

        condition = {"IfNoneMatch": "*"} if once else {}
        try:
            self._client.put_object(**self._at(name), Body=content, **condition)
        except ClientError as error:
            if once and _status(error) == 412:
                return False
            if not once or _status(error) != 501:  # 501: a server without conditional writes
                raise
            content.seek(0)
            self._client.put_object(**self._at(name), Body=content)
        return True

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self._prefix}/{name}".lstrip("/")}

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _client_of(self.uri)
            return self._made

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """What boto3 raises, as ours."""
        _boto3(self.uri)
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            HTTPClientError,
            IncompleteReadError,
            NoCredentialsError,
            ResponseStreamingError,
        )
        from botocore.exceptions import ConnectionError as NotConnected

        try:
            yield
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "unknown")
            if code in PASSING or _status(error) in (429, 500, 502, 503, 504):
                raise ConnectionError(f"the server says {code}") from error
            raise StoreError(f"objects {self.uri}: {REFUSED.get(code, f'the server says {code}')}") from error
        except (NotConnected, HTTPClientError, IncompleteReadError, ResponseStreamingError) as error:
            raise ConnectionError(type(error).__name__) from error
        except NoCredentialsError as error:
            raise StoreError(f"objects {self.uri}: there are no credentials ({CREDENTIALS})") from error
        except (BotoCoreError, Boto3Error) as error:
            raise StoreError(f"objects {self.uri}: boto3 gives up: {type(error).__name__}") from error
        except OSError as error:
            raise StoreError(f"objects {self.uri}: {error}") from error


def _client_of(uri: str) -> Any:
    from botocore.config import Config

    return (
        _boto3(uri)
        .session.Session()
        .client(
            "s3",
            config=Config(
                connect_timeout=10,
                read_timeout=60,
                retries={"mode": "standard", "total_max_attempts": 3},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
    )


def _boto3(uri: str) -> Any:
    try:
        import boto3
    except ImportError as error:
        raise UsageError(f"objects {uri}: boto3 is not installed; accepted: pip install 'colever[cluster]'") from error
    return boto3


def _in_pieces() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=WHOLE, multipart_chunksize=PIECE, max_concurrency=4)


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
