"""What S3 offers beyond fsspec's common calls: time-outs of its client, hashes in its answers, puts on a condition.

Nothing of it is imported before an address of S3 is opened.
"""

from __future__ import annotations

import hashlib
import mimetypes
import os
import uuid
from typing import Any

from data.remote.attempts import ATTEMPTS_VARIABLE, CONNECT_SECONDS, READ_SECONDS, REQUEST_ATTEMPTS, CutBody, answer_code

SCHEMES = ("s3", "s3a")
LARGEST_PUT = 64 << 20  # bytes; larger objects are put in parts, whose answer has no MD5
_WRITER = "adam-writer"  # metadata of an object that was put on a condition


def is_s3(filesystem: Any) -> bool:
    """Whether fsspec opened it with s3fs."""
    protocol = filesystem.protocol
    return any(scheme in SCHEMES for scheme in ((protocol,) if isinstance(protocol, str) else protocol))


def client_options(given: dict[str, Any]) -> dict[str, Any]:
    """Options of s3fs for its client. `given` are those of fsspec's configuration, as `FSSPEC_S3='{"config_kwargs": {...}}'`: they win.

    Requests are sent again by botocore alone: s3fs's own five attempts around them would multiply a time-out.
    """
    retries: dict[str, Any] = {"mode": "standard"}
    if ATTEMPTS_VARIABLE not in os.environ:
        retries["total_max_attempts"] = REQUEST_ATTEMPTS
    config: dict[str, Any] = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": retries}
    if "AWS_RESPONSE_CHECKSUM_VALIDATION" not in os.environ:
        # Some servers send the whole object's checksum with a part of it. What matters is compared with manifests' digests and with ETags.
        config["response_checksum_validation"] = "when_required"
    return {"config_kwargs": config | given.get("config_kwargs", {})}


def details(filesystem: Any, address: str) -> dict[str, Any]:
    """What the store says of one object, in the words of an fsspec listing. Raises FileNotFoundError."""
    bucket, key, _ = filesystem.split_path(address)
    found = filesystem.call_s3("head_object", Bucket=bucket, Key=key)
    return {"name": key, "type": "file", "size": found["ContentLength"]} | {name: found.get(name) for name in ("ETag", "LastModified")}


def put(filesystem: Any, address: str, content: bytes) -> str:
    """Put an object of at most LARGEST_PUT bytes. Returns its ETag. Raises CutBody where the answer's MD5 is another one."""
    answer = filesystem.pipe_file(address, content, **_content_type(address))
    _check(answer, content)
    return str(answer.get("ETag", "")).strip('"')


def create(filesystem: Any, address: str, content: bytes) -> bool:
    """Put an object on the condition that there is none. False where there is one.

    A request whose answer was lost is sent again and finds its own object, so the object names its writer.
    """
    writer = uuid.uuid4().hex
    try:
        answer = filesystem.pipe_file(address, content, mode="create", Metadata={_WRITER: writer}, **_content_type(address))
    except OSError as error:
        if not _is_taken(error):
            raise
        try:
            return bool(filesystem.metadata(address).get(_WRITER) == writer)
        except FileNotFoundError:  # there was one, and it was deleted meanwhile
            return False
    _check(answer, content)
    return True


def end_other_uploads(filesystem: Any, address: str) -> None:
    """Abort uploads in parts of an object that is there: of a killed process, or begun by a request whose answer was lost.

    Nobody sees them, and the bucket's owner pays for them. One that another process is at is begun again by it, see `attempts`.
    """
    bucket, key, _ = filesystem.split_path(address)
    listed = filesystem.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
    for upload in listed.get("Uploads", []):
        if upload["Key"] == key:
            filesystem.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=upload["UploadId"])


def encrypts(filesystem: Any, address: str) -> bool:
    """Whether the object is kept under a key that makes its ETag no MD5."""
    bucket, key, _ = filesystem.split_path(address)
    return _is_encrypted(filesystem.call_s3("head_object", Bucket=bucket, Key=key))


def is_beyond_end(error: OSError) -> bool:
    """Whether bytes were asked for that begin where the object has ended."""
    return answer_code(error) in ("InvalidRange", "416")


def _content_type(address: str) -> dict[str, str]:
    guessed, _ = mimetypes.guess_type(address)
    return {"ContentType": guessed} if guessed else {}


def _check(answer: dict[str, Any], content: bytes) -> None:
    found, expected = answer.get("ETag", "").strip('"'), hashlib.md5(content, usedforsecurity=False).hexdigest()
    if len(found) == len(expected) and found != expected and not _is_encrypted(answer):
        raise CutBody(f"{len(content)} bytes of MD5 {expected} were put, the answer's ETag is {found}")


def _is_encrypted(answer: dict[str, Any]) -> bool:
    return "aws:kms" in answer.get("ServerSideEncryption", "") or "SSECustomerAlgorithm" in answer


def _is_taken(error: OSError) -> bool:
    return isinstance(error, FileExistsError) or answer_code(error) in ("PreconditionFailed", "412")
