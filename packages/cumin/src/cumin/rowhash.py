"""Two 64-bit hash lanes of each row of an Arrow record batch, in numpy; what `content` sums up.

Pure. The hash of a row is multilinear over the 64-bit words of its values (Carter and Wegman's universal families,
with a non-linear step before and a finaliser after): a word ``w`` at a place of the row adds ``m * KA`` to lane A
and ``m * KB`` to lane B, where ``m = x ^ (x >> 32)`` and ``x = (w ^ S) * C``, and the place's keys ``S, KA, KB`` come
from BLAKE3 over its column's name, type and path. All arithmetic is modulo 2**64. The finaliser is that of SplitMix64.

Equal values have equal words whatever the Arrow layout: dictionary or plain, large or small offsets, string view,
sliced or chunked; -0.0 is 0.0, all NaN are one, a timestamp is its instant whatever its unit, the bytes under a null
are never read, the entries of a map have no order.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from cumin.encoding import encode
from cumin.errors import EngineError

Words = npt.NDArray[np.uint64]
Lanes = tuple[Words, Words]

CHUNK_ROWS = 32_768  # so that the arrays of one step stay in the cache
LONG_VALUE = 128  # bytes; a longer string enters by its BLAKE3 digest
_C = np.uint64(0x9E3779B97F4A7C15)
_F1, _F2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_30, _27, _31, _32 = (np.uint64(n) for n in (30, 27, 31, 32))
_TAIL = np.array([0] + [(1 << 8 * n) - 1 for n in range(1, 9)], dtype=np.uint64)
_EPOCH_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Key:
    """The constants of one place: what a word is xored with, and its two odd multipliers."""

    s: np.uint64
    a: np.uint64
    b: np.uint64


@lru_cache(maxsize=4096)
def _keys(path: tuple[str, ...], count: int) -> tuple[Key, ...]:
    """`count` keys of a place. Those of a smaller count are its beginning."""
    stream = blake3(encode(["cumin/rowhash", 1, list(path)])).digest(length=24 * count)
    raw = np.frombuffer(stream, dtype="<u8").reshape(count, 3)
    return tuple(Key(row[0], row[1] | np.uint64(1), row[2] | np.uint64(1)) for row in raw)


_NAMED: tuple[tuple[str, Any], ...] = (
    ("null", pa.types.is_null),
    ("string", lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t)),
    ("binary", lambda t: any(test(t) for test in _BINARY)),
    ("date", pa.types.is_date),
    ("time", pa.types.is_time),
    ("duration", pa.types.is_duration),
    ("interval", lambda t: t == pa.month_day_nano_interval()),
)
_BINARY: tuple[Any, ...] = (
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
    pa.types.is_fixed_size_binary,
)


def type_form(kind: pa.DataType) -> list[Any]:
    """The canonical form of a type: what enters a content id. Raises EngineError for a type that has none."""
    if isinstance(kind, pa.BaseExtensionType):
        return type_form(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return type_form(kind.value_type)
    for name, test in _NAMED:
        if test(kind):
            return [name]
    if pa.types.is_timestamp(kind):
        return ["timestamp", "instant" if kind.tz else "local"]
    if pa.types.is_decimal(kind):
        return ["decimal", kind.precision, kind.scale]
    if pa.types.is_map(kind):
        return ["map", type_form(kind.key_type), type_form(kind.item_type)]
    if _is_list(kind):
        return ["list", type_form(kind.value_type)]
    if pa.types.is_struct(kind):
        return ["struct", [[field.name, type_form(field.type)] for field in kind]]
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return [str(kind)]
    raise EngineError(f"A column of the type {kind} has no content id. Cast it in the query, to a string for instance.")


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in (*tests, pa.types.is_list_view, pa.types.is_large_list_view))


def mix(words: Words) -> Words:
    """SplitMix64's finaliser: a bijection in which each bit of the input moves half of the output's."""
    x = words >> _30
    x ^= words
    x *= _F1
    step = x >> _27
    x ^= step
    x *= _F2
    np.right_shift(x, _31, out=step)
    x ^= step
    return x


def add_word(words: Words, key: Key, lanes: Lanes) -> None:
    """Add one word per row to the lanes, in place."""
    x = words ^ key.s
    x *= _C
    step = x >> _32
    x ^= step
    np.multiply(x, key.a, out=step)
    np.add(lanes[0], step, out=lanes[0])
    np.multiply(x, key.b, out=x)
    np.add(lanes[1], x, out=lanes[1])


def column_lanes(column: pa.Array, path: tuple[str, ...], digits: int | None = None) -> Lanes:
    """What a column adds to the two lanes of each row. `path` names its place; `digits` rounds floating point."""
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.storage
    if pa.types.is_run_end_encoded(column.type):
        import pyarrow.compute as pc

        column = pc.run_end_decode(column)
    if pa.types.is_dictionary(column.type):
        lanes = _dictionary(column, path, digits)
    elif pa.types.is_struct(column.type):
        lanes = _struct(column, path, digits)
    elif pa.types.is_map(column.type) or _is_list(column.type):
        lanes = _repeated(column, path, digits)
    else:
        lanes = (np.zeros(len(column), np.uint64), np.zeros(len(column), np.uint64))
        _leaf(column, path, lanes, digits)
    if column.null_count:
        missing = column.is_null().to_numpy(zero_copy_only=False)
        key = _keys((*path, "null"), 1)[0]
        lanes[0][missing], lanes[1][missing] = key.a, key.b
    return lanes


def finish(lanes: Lanes) -> Lanes:
    """The two hash lanes of each row, from what its columns added."""
    a = mix(lanes[0])
    return a, mix(lanes[1] ^ (a >> _32))


def _dictionary(column: pa.DictionaryArray, path: tuple[str, ...], digits: int | None) -> Lanes:
    if len(column.dictionary) == 0:
        return np.zeros(len(column), np.uint64), np.zeros(len(column), np.uint64)
    lanes = column_lanes(column.dictionary, path, digits)
    index = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
    return lanes[0][index], lanes[1][index]


def _struct(column: pa.StructArray, path: tuple[str, ...], digits: int | None) -> Lanes:
    a, b = np.zeros(len(column), np.uint64), np.zeros(len(column), np.uint64)
    for index, field in enumerate(column.type):
        inner = column_lanes(column.field(index), (*path, "field", field.name), digits)
        a += inner[0]
        b += inner[1]
    return finish((a, b))


def _repeated(column: Any, path: tuple[str, ...], digits: int | None) -> Lanes:
    """Lists and maps: the sum over the items, each finished with its position (in a map, without)."""
    is_map = pa.types.is_map(column.type)
    if is_map:
        lengths, items = _map_entries(column)
    else:
        import pyarrow.compute as pc

        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        items = column.flatten()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    inner = column_lanes(items, (*path, "item"), digits)
    if not is_map:
        place = (np.arange(len(items), dtype=np.int64) - np.repeat(starts, lengths)).astype(np.uint64)
        add_word(place, _keys((*path, "place"), 1)[0], inner)
    finished = finish(inner)
    totals = [np.concatenate((np.zeros(1, np.uint64), np.cumsum(lane, dtype=np.uint64))) for lane in finished]
    lanes = (totals[0][ends] - totals[0][starts], totals[1][ends] - totals[1][starts])
    add_word(lengths.astype(np.uint64), _keys((*path, "length"), 1)[0], lanes)
    return lanes


def _map_entries(column: pa.MapArray) -> tuple[npt.NDArray[np.int64], pa.StructArray]:
    offsets = column.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = np.diff(offsets)
    if column.null_count:
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        runs = [np.arange(s, e) for s, e in zip(offsets[:-1][valid], offsets[1:][valid], strict=True)]
        taken = np.concatenate([np.arange(0), *runs])
        lengths = np.where(valid, lengths, 0)
    else:
        taken = np.arange(offsets[0], offsets[-1])
    # `keys` and `items` are of the whole array whatever the slice, and the offsets are into the whole.
    index = pa.array(taken.astype(np.int64))
    return lengths, pa.StructArray.from_arrays([column.keys.take(index), column.items.take(index)], names=["k", "v"])


def _leaf(column: pa.Array, path: tuple[str, ...], lanes: Lanes, digits: int | None) -> None:
    kind = column.type
    if pa.types.is_null(kind):
        return
    if type_form(kind)[0] in ("string", "binary"):
        _bytes(column, path, lanes)
        return
    for words, key in zip(_words(column, digits), _keys(path, 4), strict=False):
        add_word(words, key, lanes)


def _plain(column: pa.Array, kind: pa.DataType) -> npt.NDArray[Any]:
    """The values as numpy, nulls filled: what stands there is overwritten by the null's own constant."""
    if column.type != kind:
        column = column.cast(kind)
    if column.null_count:
        column = column.fill_null(0)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def _words(column: pa.Array, digits: int | None) -> list[Words]:
    """The 64-bit words of each value of a type of fixed width."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return [_plain(column, pa.uint8()).astype(np.uint64)]
    if pa.types.is_integer(kind):
        numbers = _plain(column, kind)
        return [numbers if numbers.dtype == np.uint64 else numbers.astype(np.int64).view(np.uint64)]
    if pa.types.is_floating(kind):
        return [_float_words(_plain(column, pa.float64()), digits)]
    if pa.types.is_date32(kind):
        return [_plain(column.view(pa.int32()), pa.int64()).view(np.uint64)]
    if pa.types.is_date64(kind):
        return [(_plain(column.view(pa.int64()), pa.int64()) // 86_400_000).view(np.uint64)]
    if pa.types.is_time32(kind):
        scale = {"s": 10**9, "ms": 10**6}[kind.unit]
        return [(_plain(column.view(pa.int32()), pa.int64()) * scale).view(np.uint64)]
    if pa.types.is_time64(kind):
        return [(_plain(column.view(pa.int64()), pa.int64()) * (1000 if kind.unit == "us" else 1)).view(np.uint64)]
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind):
        return _instant_words(_plain(column.view(pa.int64()), pa.int64()), kind.unit)
    if pa.types.is_decimal(kind):
        return _raw_words(column.cast(pa.decimal256(kind.precision, kind.scale)), 4)
    return _raw_words(column, 2)  # month_day_nano: the last of the types that type_form lets through


def _float_words(numbers: npt.NDArray[np.float64], digits: int | None) -> Words:
    if digits is not None:
        numbers = _rounded(numbers, digits)
    numbers = numbers + 0.0  # -0.0 becomes 0.0
    words = numbers.view(np.uint64)
    nan = np.isnan(numbers)
    if nan.any():
        words = np.where(nan, np.uint64(0x7FF8000000000000), words)
    return words


def _rounded(numbers: npt.NDArray[np.float64], digits: int) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exponent = np.floor(np.log10(np.abs(numbers)))
        factor = np.power(10.0, digits - 1 - exponent)
        return np.where(np.isfinite(factor) & (factor > 0), np.rint(numbers * factor) / factor, numbers)


def _instant_words(numbers: npt.NDArray[np.int64], unit: str) -> list[Words]:
    if unit != "ns":
        return [(numbers * _EPOCH_UNITS[unit]).view(np.uint64)]
    micros, rest = np.divmod(numbers, 1000)
    # What is finer than a microsecond changes the word; where there is nothing finer, it is that of the other units.
    return [micros.view(np.uint64) ^ mix(rest.view(np.uint64))]


def _raw_words(column: pa.Array, count: int) -> list[Words]:
    """The words of values of `count` times eight bytes, straight from the data buffer."""
    buffer = column.buffers()[1]
    words = np.frombuffer(buffer, dtype="<u8", count=(column.offset + len(column)) * count)
    table = words.reshape(-1, count)[column.offset :]
    return [np.ascontiguousarray(table[:, index]) for index in range(count)]


def _bytes(column: pa.Array, path: tuple[str, ...], lanes: Lanes) -> None:
    """Strings and binary: their length, then each eight bytes with keys of their place; a long value's digest."""
    column = column.cast(pa.large_binary())
    if column.null_count:
        column = column.fill_null(b"")
    offsets = np.frombuffer(column.buffers()[1], dtype="<i8", count=column.offset + len(column) + 1)[column.offset :]
    starts, lengths = offsets[:-1], np.diff(offsets)
    keys = _keys((*path, "bytes"), LONG_VALUE // 8 + 1)
    add_word(lengths.astype(np.uint64), keys[0], lanes)
    first, last = (int(offsets[0]), int(offsets[-1])) if len(offsets) else (0, 0)
    if last == first:
        return
    data = np.zeros(last - first + 8, dtype=np.uint8)  # eight more, so that the last word may be read whole
    data[: last - first] = np.frombuffer(column.buffers()[2], dtype=np.uint8, count=last)[first:]
    long = lengths > LONG_VALUE
    if long.any():
        _long_values(data, starts - first, lengths, np.flatnonzero(long), path, lanes)
    _short_values(data, starts - first, np.where(long, 0, lengths), keys, lanes)


def _short_values(data: Any, starts: Any, lengths: Any, keys: tuple[Key, ...], lanes: Lanes) -> None:
    at_byte: Words = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    rows = np.flatnonzero(lengths)
    place = 0
    while len(rows):
        left = lengths[rows] - 8 * place
        words = at_byte[starts[rows] + 8 * place] & _TAIL[np.minimum(left, 8)]
        key = keys[place + 1]
        x = (words ^ key.s) * _C
        x ^= x >> _32
        if len(rows) == len(lengths):
            lanes[0][:] += x * key.a
            lanes[1][:] += x * key.b
        else:
            lanes[0][rows] += x * key.a
            lanes[1][rows] += x * key.b
        rows = rows[left > 8]
        place += 1


def _long_values(data: Any, starts: Any, lengths: Any, rows: Any, path: tuple[str, ...], lanes: Lanes) -> None:
    digests = bytearray()
    view = memoryview(data)
    for start, length in zip(starts[rows].tolist(), lengths[rows].tolist(), strict=True):
        digests += blake3(view[start : start + length]).digest(length=16)
    words = np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2)
    part = (np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint64))
    for index, key in enumerate(_keys((*path, "long"), 2)):
        add_word(np.ascontiguousarray(words[:, index]), key, part)
    lanes[0][rows] += part[0]
    lanes[1][rows] += part[1]
