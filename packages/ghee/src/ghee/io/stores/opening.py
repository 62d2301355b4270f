"""From a URL to the filesystem of its store and the path on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from ghee.errors import PipelineError
from ghee.install import how_to_install
from ghee.io.stores.bridge import FsspecHandler
from ghee.io.stores.hdfs import HdfsHandler, set_user

S3_OPTIONS = (
    "access_key", "secret_key", "session_token", "anonymous", "region", "scheme", "endpoint_override", "role_arn",
    "session_name", "external_id", "connect_timeout", "request_timeout", "force_virtual_addressing", "proxy_options",
    "tls_ca_file_path", "default_metadata", "background_writes",
)  # fmt: skip
_KNOWN = "a local path, file://, hdfs://, viewfs://, s3://, webhdfs://, gs://, abfs://"
_EXTRAS = {"webhdfs": "webhdfs", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure"}


def open_store(text: str, scheme: str, rest: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    """The filesystem and the path; `rest` is what stands behind "scheme://", it may hold wildcards.

    Raises PipelineError where something is to be installed, or an option or a URL means nothing.
    """
    try:
        return _OPENERS.get(scheme, _fsspec)(text, scheme, rest, options)
    except PipelineError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise PipelineError(f"{text!r} cannot be opened: {error}") from error


def _s3(text: str, scheme: str, rest: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    path, _, query = rest.partition("?") if re.search(r"\?[a-z_]+=", rest) else (rest, "", "")
    given: dict[str, Any] = {**dict(parse_qsl(query)), **options}
    user, mark, host = path.partition("@")
    if mark and "/" not in user:
        key, _, secret = user.partition(":")
        given = {"access_key": unquote(key), "secret_key": unquote(secret), **given}
        path = host
    unknown = [name for name in given if name not in S3_OPTIONS]
    if unknown:
        raise PipelineError(f"{', '.join(map(repr, unknown))}: no option of S3; allowed are {', '.join(S3_OPTIONS)}.")
    if not path.strip("/"):
        raise PipelineError(f"{text!r} names no bucket; write s3://bucket/path.")
    endpoint = given.get("endpoint_override") or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        given["endpoint_override"] = endpoint
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if "region" not in given and (region or endpoint):
        given["region"] = region or "us-east-1"
    if "region" not in given and not re.search(r"[*?\[]", path.split("/")[0]):
        given["region"] = pafs.resolve_s3_region(path.split("/")[0])
    given.setdefault("connect_timeout", 5.0)
    return pafs.S3FileSystem(**given), path.rstrip("/")


def _hdfs(text: str, scheme: str, rest: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    authority, _, path = rest.partition("/")
    user, mark, address = authority.rpartition("@")
    given = dict(options)
    user = str(given.pop("user", unquote(user) if mark else "")) or ""
    if user:
        set_user(user)
    address = address if address and address != "default" else _default_fs(text)
    try:
        import hdfs_native  # noqa: F401  optional
    except ImportError:
        return _libhdfs(text, address, user), "/" + path.rstrip("/")
    wrong = [name for name, value in given.items() if not isinstance(value, str)]
    if wrong:
        raise PipelineError(f"storage_options of HDFS are Hadoop's settings, as strings; {', '.join(wrong)} is none.")
    return pafs.PyFileSystem(HdfsHandler(f"{scheme}://{address}", given)), "/" + path.rstrip("/")


def _default_fs(text: str) -> str:
    """hdfs:///path: the name node of fs.defaultFS."""
    folder = os.environ.get("HADOOP_CONF_DIR") or os.path.join(os.environ.get("HADOOP_HOME", ""), "etc/hadoop")
    try:
        with open(os.path.join(folder, "core-site.xml"), encoding="utf-8") as file:
            said = re.search(r"<name>\s*fs\.defaultFS\s*</name>\s*<value>\s*\w+://([^<\s/]+)", file.read())
    except OSError:
        said = None
    if said is None:
        raise PipelineError(
            f"{text!r} names no name node, and no core-site.xml in HADOOP_CONF_DIR ({folder}) says fs.defaultFS; "
            "write hdfs://host:port/path or hdfs://name-service/path."
        )
    return said[1]


def _libhdfs(text: str, address: str, user: str) -> Any:
    """pyarrow's own, by Java and libhdfs, where hdfs-native is not installed."""
    host, _, port = address.partition(":")
    try:
        return pafs.HadoopFileSystem(host, int(port or 0), user=user or None)
    except (OSError, pa.ArrowException) as error:
        raise PipelineError(
            f"{text!r}: HDFS is read by hdfs-native, which is not installed: {how_to_install('hdfs')}. "
            f"pyarrow's own way, by Java, does not work here either: {str(error).partition(chr(10))[0]}"
        ) from error


def _fsspec(text: str, scheme: str, rest: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    try:
        import fsspec  # optional

        filesystem, path = fsspec.core.url_to_fs(text, **options)
    except ImportError as error:
        if scheme in _EXTRAS:
            raise PipelineError(
                f"{text!r}: {scheme}:// needs a library that is not installed ({error}): {how_to_install(_EXTRAS[scheme])}"
            ) from error
        raise PipelineError(
            f"{text!r}: {scheme}:// is no scheme that ghee knows ({_KNOWN}), and of fsspec's this is missing: {error}. "
            f"Correct the URL, or install fsspec ({how_to_install('fsspec')}) and its package for {scheme}://."
        ) from error
    except ValueError as error:
        raise PipelineError(
            f"{text!r}: {error}. Known here: {_KNOWN} and what the installed fsspec packages open."
        ) from error
    return pafs.PyFileSystem(FsspecHandler(filesystem)), str(path)


_Opener = Callable[[str, str, str, Mapping[str, Any]], tuple[Any, str]]
_OPENERS: dict[str, _Opener] = {"s3": _s3, "s3a": _s3, "hdfs": _hdfs, "viewfs": _hdfs}
