"""The data checker: is the data what the model's schema says? Every violation at once, none of the rows' contents.

Three depths, each cheaper than the next: the metadata (schemas and row counts), then a bounded sample of rows (the first
and last row group of every file) or all of them; `Counter` counts while rows stream by in a training, without knowing
their place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ghee_models.errors import DataError
from ghee_models.parts import files_of, paths_of, resolve, source_of
from ghee_models.schema import Field, Schema, family

_UNIQUE_KEYS = 5_000_000  # keys held to find duplicates; beyond it only these are compared
_SHOWN = 5  # values printed per violation when the user asked for them


@dataclass
class Violation:
    """One broken rule of one column.

    count: rows (or files) that break it; file, row_group, row: the first of them, row counted from 0 in its file; got:
    what was found (types and numbers of rows; values only when asked for); fix: what to do.
    """

    field: str
    rule: str
    count: int
    file: str | None = None
    row_group: int | None = None
    row: int | None = None
    got: str = ""
    fix: str = ""

    def __str__(self) -> str:
        place = "" if self.file is None else f", first in {self.file}"
        place += "" if self.row_group is None else f", row group {self.row_group}"
        place += "" if self.row is None else f", row {self.row}{' of its batch' if self.file is None else ''}"
        got = f" ({self.got})" if self.got else ""
        return f"{self.field}: {self.rule}{got}, {self.count} time{'s' if self.count != 1 else ''}{place}. {self.fix}"


@dataclass
class Report:
    """What the checker found. `rows`: how many rows were looked at; `total`: how many there are."""

    violations: list[Violation] = field(default_factory=list)
    rows: int = 0
    total: int | None = None

    @property
    def ok(self) -> bool:
        return not self.violations

    def __str__(self) -> str:
        looked = f"{self.rows} of {self.total} rows" if self.total is not None else f"{self.rows} rows"
        if self.ok:
            return f"The data is as the schema says ({looked} looked at)."
        n = len(self.violations)
        head = f"The data breaks its schema in {n} way{'s' if n > 1 else ''} ({looked} looked at):"
        return "\n".join([head, *(f"  {violation}" for violation in self.violations)])

    def to_json(self) -> dict[str, Any]:
        """Plain values: ok, rows, total, and every violation with its fields (`Violation`)."""
        return {
            "ok": self.ok,
            "rows": self.rows,
            "total": self.total,
            "violations": [asdict(violation) for violation in self.violations],
        }

    def raise_if_bad(self) -> None:
        """Raises DataError when there is a violation."""
        if not self.ok:
            raise DataError(self)


def check(data: Any, *, model: str, settings: Mapping[str, Any] | None = None, everything: bool = False) -> Report:
    """Checks Parquet data for training a model of this id: metadata, then a sample of rows, or `everything`.

    data: a path, or a dataset of cumin's; settings: as for `train`; `{"data": {...}}` says what the columns mean.
    Example: check("clicks/", model="fm", settings={"data": {"fields": {"age": "numeric"}, "label": "clicked"}})
    """
    from ghee_models import registry
    from ghee_models.settings import Settings, build, check_settings

    given = build(Settings, settings or {}, where="settings")
    check_settings(given)
    described = source_of(data, given.data)
    return check_schema(registry.load_class(model).make_schema(described), paths_of(described), everything=everything)


def check_schema(
    schema: Schema,
    path: str | Sequence[str],
    *,
    everything: bool = False,
    show_values: bool = False,
    training: bool = True,
) -> Report:
    """Checks Parquet data against a schema: metadata first, then a bounded sample of rows, or `everything`.

    For data to predict (`training=False`) labels are not needed, and columns must hold the types of training.
    """
    wanted = schema if training else Schema(schema.inputs, ())
    paths = resolve(path) if isinstance(path, str) else tuple(path)
    try:
        files = files_of(paths)
    except DataError as error:
        return error.report
    report = _check_metadata(wanted, files)
    broken = {violation.field for violation in report.violations}
    readable = Schema(tuple(f for f in wanted.fields if f.name not in broken), wanted.unique)
    if broken.isdisjoint({"(data)", "(file)"}):
        _check_rows(readable, files, report, everything=everything, show_values=show_values)
    return report


def _check_metadata(schema: Schema, files: list[tuple[Any, str]]) -> Report:
    report = Report(total=0)
    found: dict[tuple[str, str], Violation] = {}
    for system, name in files:
        try:
            with system.open_input_file(name) as file:
                parquet = pq.ParquetFile(file)
                columns, rows = parquet.schema_arrow, parquet.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0][:120]
            _note(found, "(file)", "cannot be read as Parquet", name, reason, "Write the file again, or leave it out.")
            continue
        assert report.total is not None
        report.total += rows
        for f in schema.fields:
            at = columns.get_field_index(f.name)
            if at < 0:
                there = f"columns are {', '.join(columns.names[:20])}"
                _note(found, f.name, "the column is missing", name, there, f"Add it, or name another column as {f.kind}.")
                continue
            _check_type(found, f, columns.field(at).type, name)
    report.violations = list(found.values())
    if report.total == 0 and not report.violations:
        place = files[0][1]
        report.violations.append(Violation("(data)", "there is no row", 1, file=place, fix="Check data.path."))
    return report


def _check_type(found: dict[tuple[str, str], Violation], f: Field, arrow: pa.DataType, file: str) -> None:
    if not f.allows(arrow):
        _note(found, f.name, "the type is not allowed", file, f"got {arrow}; {f.kind} needs {f.wanted}", "Cast the column.")
    elif f.arrow is not None and family(f.arrow) != family(arrow) and f.kind not in ("numeric", "rating", "binary"):
        got = f"got {arrow}, training had {f.arrow}"
        _note(found, f.name, "the type is not that of training", file, got, "Cast the column: no value would be known.")


def _note(found: dict[tuple[str, str], Violation], name: str, rule: str, file: str, got: str, fix: str) -> None:
    known = found.setdefault((name, rule), Violation(name, rule, 0, file=file, got=got, fix=fix))
    known.count += 1


def _check_rows(
    schema: Schema, files: list[tuple[Any, str]], report: Report, *, everything: bool, show_values: bool
) -> None:
    counter = Counter(schema, show_values=show_values)
    for system, name in files:
        with system.open_input_file(name) as file:
            parquet = pq.ParquetFile(file)
            groups = range(parquet.num_row_groups)
            chosen = groups if everything else sorted({groups[0], groups[-1]}) if len(groups) else []
            starts = np.cumsum([0, *(parquet.metadata.row_group(g).num_rows for g in groups)])
            for group in chosen:
                start = int(starts[group])
                for rows in parquet.iter_batches(65_536, row_groups=[group], columns=schema.names, use_threads=False):
                    counter.add(rows, file=name, row_group=group, first_row=start)
                    start += rows.num_rows
    sampled = not everything and report.total is not None and counter.rows < report.total
    report.rows = counter.rows
    report.violations += counter.finish(whole=not sampled)


class Counter:
    """Counts violations over batches; counters of parts of the data merge. Holds counts, and keys where rows are unique."""

    def __init__(self, schema: Schema, *, show_values: bool = False) -> None:
        self.schema, self.show_values = schema, show_values
        self.rows = 0
        self.found: dict[tuple[str, str], Violation] = {}
        self.positive = 0
        self.classes: set[Any] = set()
        self.valid: dict[str, int] = {f.name: 0 for f in schema.fields}
        self._keys: set[tuple[Any, ...]] = set()

    def add(
        self, rows: pa.RecordBatch, file: str | None = None, row_group: int | None = None, first_row: int | None = None
    ) -> None:
        """Counts one batch; where it lies is said when it is known."""
        self.rows += rows.num_rows
        place = (file, row_group, first_row)
        for f in self.schema.fields:
            column = rows.column(rows.schema.get_field_index(f.name))
            self.valid[f.name] += len(column) - column.null_count
            if not f.nullable and column.null_count:
                fix = f"Fill or drop them, or list {f.name} in data.nullable."
                self._broken(f.name, "null", pc.is_null(column), column, place, fix)
            if f.kind in ("numeric", "rating"):
                self._check_numbers(f, column, place)
            elif f.kind == "binary":
                self._check_binary(f, column, place)
            elif f.kind == "class":
                self.classes.update(pc.unique(column.drop_null()).to_pylist()[:1000])
                self._check_classes(f, column, place)
        if self.schema.unique:
            self._check_unique(rows, place)

    def _check_numbers(self, f: Field, column: pa.Array, place: tuple[Any, ...]) -> None:
        values = column.cast(pa.float64())
        not_finite = pc.fill_null(pc.invert(pc.is_finite(values)), False)
        self._broken(f.name, "not a finite number", not_finite, column, place, "Replace NaN and infinity.")
        if f.minimum is not None:
            below = pc.fill_null(pc.less(values, f.minimum), False)
            self._broken(f.name, f"below {f.minimum}", below, column, place, "Drop or correct these rows.")
        if f.maximum is not None:
            above = pc.fill_null(pc.greater(values, f.maximum), False)
            self._broken(f.name, f"above {f.maximum}", above, column, place, "Drop or correct these rows.")

    def _check_binary(self, f: Field, column: pa.Array, place: tuple[Any, ...]) -> None:
        numbers = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        values = numbers.cast(pa.float64())
        if f.positive_from is None:
            other = pc.fill_null(pc.and_(pc.not_equal(values, 0.0), pc.not_equal(values, 1.0)), False)
            fix = "A binary label is 0 or 1; set data.positive_from for a number that is cut."
            self._broken(f.name, "neither 0 nor 1", other, column, place, fix)
        threshold = 1.0 if f.positive_from is None else f.positive_from
        self.positive += pc.sum(pc.greater_equal(values, threshold)).as_py() or 0

    def _check_classes(self, f: Field, column: pa.Array, place: tuple[Any, ...]) -> None:
        if f.classes:
            allowed = pc.is_in(column.cast(pa.string()), value_set=pa.array(f.classes))
            other = pc.and_(pc.invert(allowed), pc.is_valid(column))
            fix = f"Allowed are {', '.join(f.classes)}; correct these rows, or data.classes."
            self._broken(f.name, "no class that is allowed", other, column, place, fix)

    def _check_unique(self, rows: pa.RecordBatch, place: tuple[Any, ...]) -> None:
        columns = [rows.column(rows.schema.get_field_index(name)).to_pylist() for name in self.schema.unique]
        repeated = np.zeros(rows.num_rows, dtype=np.bool_)
        for n, key in enumerate(zip(*columns, strict=True)):
            if key in self._keys:
                repeated[n] = True
            elif len(self._keys) < _UNIQUE_KEYS:
                self._keys.add(key)
        name = ", ".join(self.schema.unique)
        fix = "Keep one row per key, or leave data.unique empty."
        self._broken(name, "a repeated key", pa.array(repeated), None, place, fix)

    def _broken(
        self, name: str, rule: str, mask: pa.Array, column: pa.Array | None, place: tuple[Any, ...], fix: str
    ) -> None:
        count = pc.sum(mask).as_py() or 0
        if not count:
            return
        known = self.found.get((name, rule))
        if known is None:
            first = pc.index(mask, True).as_py()
            file, group, start = place
            got = ""
            if self.show_values and column is not None:
                got = f"such as {', '.join(repr(v) for v in column.filter(mask)[:_SHOWN].to_pylist())}"
            row = None if start is None else start + first
            known = self.found[name, rule] = Violation(name, rule, 0, file, group, row, got, fix)
        known.count += count

    def merge(self, other: Counter) -> Counter:
        """Adds what another counter has counted of other rows."""
        self.rows += other.rows
        self.positive += other.positive
        self.classes |= other.classes
        for name, valid in other.valid.items():
            self.valid[name] += valid
        for key, violation in other.found.items():
            if key in self.found:
                self.found[key].count += violation.count
            else:
                self.found[key] = violation
        repeated = len(self._keys & other._keys)
        if repeated:
            name = ", ".join(self.schema.unique)
            fix = "Keep one row per key, or leave data.unique empty."
            known = self.found.setdefault((name, "a repeated key"), Violation(name, "a repeated key", 0, fix=fix))
            known.count += repeated
        self._keys |= other._keys
        return self

    def finish(self, *, whole: bool) -> list[Violation]:
        """Every violation; `whole`: all rows were counted, so that emptiness and a single class can be told."""
        violations = list(self.found.values())
        if not whole:
            return violations
        if self.rows == 0:
            violations.append(Violation("(data)", "there is no row", 1, fix="Check data.path and the split."))
            return violations
        for name, valid in self.valid.items():
            if valid == 0:
                violations.append(Violation(name, "only nulls", self.rows, fix="Leave the column out of data.fields."))
        label = self.schema.label
        if label is not None and label.kind == "binary" and self.positive in (0, self.rows):
            got = f"{self.positive} of {self.rows} rows are positive"
            fix = "Check data.label and data.positive_from."
            violations.append(Violation(label.name, "one class only", self.rows, got=got, fix=fix))
        if label is not None and label.kind == "class" and len(self.classes) < 2:
            fix = "A classifier needs at least two classes; check data.label."
            violations.append(Violation(label.name, "one class only", self.rows, fix=fix))
        return violations


def check_streamed(schema: Schema, rows: pa.RecordBatch) -> None:
    """Raises DataError when rows of a stream break a rule that can be told without the other rows."""
    counter = Counter(Schema(schema.fields))
    counter.add(rows)
    if counter.found:
        raise DataError(Report(list(counter.found.values()), rows.num_rows))


@contextlib.contextmanager
def placed(schema: Schema, paths: Sequence[str], *, training: bool) -> Iterator[None]:
    """Makes a DataError of a stream over these files say every violation and where it is: they are read once more."""
    try:
        yield
    except DataError:
        report = check_schema(schema, paths, everything=True, training=training)
        if report.ok:  # a rule of the model's own, such as unknown ids
            raise
        raise DataError(report) from None


def check_batches(schema: Schema, batches: Iterable[pa.RecordBatch]) -> Report:
    """Checks rows that are at hand, all of them."""
    counter = Counter(schema)
    for rows in batches:
        counter.add(rows)
    return Report(counter.finish(whole=True), counter.rows, counter.rows)
