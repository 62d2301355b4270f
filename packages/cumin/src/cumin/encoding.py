"""One canonical byte form of a value, and its BLAKE3-256 digest: the only way into an id.

Pure: no clock, no file, no library whose form may change. Every item is a type tag of one byte, the length of its
body in ASCII digits, a colon, and the body; so no two values share a form, and no item can be read as two.

========  ==========================================================
tag       body
========  ==========================================================
``n``     nothing (None)
``b``     ``0`` or ``1``
``i``     decimal digits, ``-`` before a negative
``f``     the eight bytes of the IEEE 754 double, big-endian
``d``     sign digit, coefficient digits, ``e``, exponent (Decimal, kept as written: 1.0 is not 1.00)
``s``     UTF-8 (``surrogateescape``, so that any file name has a form)
``y``     bytes
``D``     ISO date
``T``     ISO date and time without a zone
``Z``     ISO date and time in UTC
``l``     the forms of the items, in order (list and tuple)
``m``     the forms of keys and values, sorted by the keys' UTF-8 (dict with str keys)
========  ==========================================================

The golden tests pin this form: changing it is a new version of every id.
"""

import struct
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from blake3 import blake3

FORM_VERSION = 1


def encode(value: Any) -> bytes:
    """The canonical form of `value`. Raises TypeError, naming the place, for a type that has none."""
    out: list[bytes] = []
    try:
        _encode(value, out)
    except TypeError:
        _refuse(value, "value")  # says where
        raise
    return b"".join(out)


def digest(domain: str, value: Any) -> str:
    """BLAKE3-256 over the form of ``[domain, FORM_VERSION, value]``, as 64 hex digits.

    `domain` keeps ids of different kinds apart, so that no dataset can have the id of a partition.
    """
    return blake3(encode([domain, FORM_VERSION, value])).hexdigest()


def _encode(value: Any, out: list[bytes]) -> None:
    if type(value) is str:  # most are: the names and tokens of partitions
        body = value.encode("utf-8", "surrogateescape")
        out.append(b"s%d:%b" % (len(body), body))
        return
    scalar = _scalar(value)
    if scalar is not None:
        tag, body = scalar
    else:
        parts: list[bytes] = []
        if isinstance(value, (list, tuple)):
            tag = b"l"
            for item in value:
                _encode(item, parts)
        elif isinstance(value, Mapping):
            tag = b"m"
            for key in sorted(value, key=_key_order):
                _encode(key, parts)
                _encode(value[key], parts)
        else:
            raise TypeError
        body = b"".join(parts)
    out.append(b"%b%d:%b" % (tag, len(body), body))


def _key_order(key: Any) -> bytes:
    if not isinstance(key, str):
        raise TypeError
    return key.encode("utf-8", "surrogateescape")


def _refuse(value: Any, where: str) -> None:
    """Raise TypeError for the first part of `value` that has no form."""
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse(item, f"{where}[{index}]")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r}; a dict with a canonical form has str keys only.")
            _refuse(item, f"{where}[{key!r}]")
    elif _scalar(value) is None:
        raise TypeError(
            f"{where} is a {type(value).__qualname__}, which has no canonical form. Allowed: None, bool, int, float, "
            "Decimal, str, bytes, date, datetime, list, tuple, and dict with str keys."
        )


def _scalar(value: Any) -> tuple[bytes, bytes] | None:
    """Tag and body of a value without parts; None for any other type. bool before int, datetime before date."""
    if value is None:
        return b"n", b""
    if isinstance(value, bool):
        return b"b", b"1" if value else b"0"
    if isinstance(value, int):
        return b"i", str(int(value)).encode()
    if isinstance(value, float):
        return b"f", struct.pack(">d", value)
    if isinstance(value, Decimal):
        sign, digits, exponent = value.as_tuple()
        return b"d", f"{sign}{''.join(map(str, digits))}e{exponent}".encode()
    if isinstance(value, str):
        return b"s", value.encode("utf-8", "surrogateescape")
    if isinstance(value, (bytes, bytearray)):
        return b"y", bytes(value)
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return b"T", value.isoformat().encode()
        return b"Z", value.astimezone(UTC).replace(tzinfo=None).isoformat().encode()
    if isinstance(value, date):
        return b"D", value.isoformat().encode()
    return None
