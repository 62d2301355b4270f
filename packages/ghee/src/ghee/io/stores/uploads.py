"""Uploads to S3 that were begun and never ended: whoever is killed in the middle of one leaves its pieces in the bucket.

They are no object, nobody sees them, and they are paid for. pyarrow can neither list nor end them; boto3 can.
"""

from __future__ import annotations

from typing import Any

import pyarrow.fs as pafs

from ghee.io.stores.patience import first_line, say


def end_uploads(filesystem: Any, folder: str) -> int:
    """End the uploads below a folder, and count them. Where it is no S3, or boto3 is not installed, nothing is done.

    A store that refuses is told of and no error: the rows of a run do not hang on it.
    """
    client = s3_client(filesystem)
    if client is None:
        return 0
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = folder.partition("/")
    ended = 0
    try:
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=f"{prefix.rstrip('/')}/")
        for upload in [upload for page in pages for upload in page.get("Uploads", [])]:
            client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"])
            ended += 1
    except (BotoCoreError, ClientError) as error:
        say(f"uploads that were cut short below s3://{folder} may be left: {first_line(error)}")
    return ended


def s3_client(filesystem: Any) -> Any:
    """boto3's client for the same server with the same keys; None where it is no S3 or boto3 is not installed."""
    if not isinstance(filesystem, pafs.S3FileSystem):
        return None
    try:
        import boto3  # optional: the extra `s3`
    except ImportError:
        return None
    _, (options,) = filesystem.__reduce__()
    endpoint = options["endpoint_override"]
    if endpoint and "://" not in endpoint:
        endpoint = f"{options['scheme']}://{endpoint}"
    return boto3.client(
        "s3",
        aws_access_key_id=options["access_key"] or None,
        aws_secret_access_key=options["secret_key"] or None,
        aws_session_token=options["session_token"] or None,
        region_name=options["region"] or None,
        endpoint_url=endpoint or None,
        verify=options["tls_ca_file_path"] or None,
    )
