"""A file that takes the place of the one that was seen, or of none, and of no other: of two publishes one comes first.

HDFS: renaming without overwriting, so of two that saw no file one fails. S3: a put on a condition (If-None-Match, If-Match),
by boto3 , for pyarrow has none. Elsewhere, and where boto3 is not there or not let in, a plain move.
"""

from __future__ import annotations

from typing import Any

import pyarrow.fs as pafs

from ghee.io.stores.hdfs import HdfsHandler
from ghee.io.stores.uploads import s3_client

_REFUSED = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


class Overtaken(Exception):
    """Another file is there than the one that was seen."""


def version(filesystem: Any, path: str) -> str | None:
    """What tells the file that is there from every other; None where there is none."""
    client = s3_client(filesystem)
    if client is not None:
        from botocore.exceptions import BotoCoreError, ClientError

        bucket, _, key = path.partition("/")
        try:
            return str(client.head_object(Bucket=bucket, Key=key)["ETag"])
        except (BotoCoreError, ClientError):
            pass  # not there, or boto3 is not let in: pyarrow knows which
    info = filesystem.get_file_info(path)
    return None if info.type == pafs.FileType.NotFound else ""


def put_in_place(filesystem: Any, ready: str, path: str, seen: str | None) -> None:
    """Puts `ready` in the place of `path`, which had the version `seen`. Raises Overtaken where that is no longer so."""
    handler = getattr(filesystem, "handler", None)
    if isinstance(handler, HdfsHandler) and seen is None:
        try:
            handler.move_new(ready, path)
        except FileExistsError as error:
            raise Overtaken from error
        return
    client = None if seen == "" else s3_client(filesystem)
    if client is None or not _put(client, filesystem, ready, path, seen):
        filesystem.move(ready, path)


def _put(client: Any, filesystem: Any, ready: str, path: str, seen: str | None) -> bool:
    """Whether boto3 could ask for it."""
    from botocore.exceptions import BotoCoreError, ClientError

    with filesystem.open_input_stream(ready) as stream:
        data = stream.read()
    bucket, _, key = path.partition("/")
    condition = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}
    try:
        client.put_object(Bucket=bucket, Key=key, Body=data, **condition)
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in _REFUSED:
            raise Overtaken from error
        return False
    except BotoCoreError:
        return False
    return True
