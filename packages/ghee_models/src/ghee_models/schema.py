"""The schema of a model's data: which columns, what they mean, which values are allowed. Data only; reads nothing.

A schema is made from the data settings at training, completed with the Arrow types that were seen, and stored with the
model: data to predict is checked against it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

KINDS = ("user", "item", "categorical", "categories", "numeric", "binary", "class", "rating")
LABELS = ("binary", "class", "rating")


@dataclass(frozen=True)
class Field:
    """One column.

    kind: what it is to the model. `user` and `item` are ids (integers or text); `categorical` is one value and
    `categories` a list of values, integers or text; `numeric` is a number; `binary`, `class` and `rating` are labels.
    """

    name: str
    kind: str
    nullable: bool = False
    minimum: float | None = None  # numeric and rating: the smallest value allowed
    maximum: float | None = None
    classes: tuple[str, ...] = ()  # class: the labels that are allowed, as text; empty: all
    positive_from: float | None = None  # binary: a number from which on the row is positive; None: the column is 0/1
    arrow: str | None = None  # the Arrow type seen in training; None before

    @property
    def is_label(self) -> bool:
        return self.kind in LABELS

    def allows(self, arrow: pa.DataType) -> bool:
        """Whether a column of this Arrow type can be this field."""
        if pt.is_dictionary(arrow):
            arrow = arrow.value_type
        if self.kind == "categories":
            return bool(pt.is_list(arrow) or pt.is_large_list(arrow)) and _is_key(arrow.value_type)
        if self.kind in ("numeric", "rating"):
            return _is_number(arrow)
        if self.kind == "binary":
            return _is_number(arrow) or bool(pt.is_boolean(arrow))
        return _is_key(arrow) or (self.kind != "user" and self.kind != "item" and bool(pt.is_boolean(arrow)))

    @property
    def wanted(self) -> str:
        """The Arrow types allowed, in words."""
        if self.kind == "categories":
            return "a list of integers or text"
        if self.kind in ("numeric", "rating"):
            return "a number"
        if self.kind == "binary":
            return "a number or a boolean"
        return "integers or text"


def _is_key(arrow: pa.DataType) -> bool:
    return bool(pt.is_integer(arrow) or pt.is_string(arrow) or pt.is_large_string(arrow))


def _is_number(arrow: pa.DataType) -> bool:
    return bool(pt.is_integer(arrow) or pt.is_floating(arrow))


def family(arrow: pa.DataType | str) -> str:
    """integer, text, number, boolean or list<...>: types of one family hold the same values."""
    text = str(arrow)
    if text.startswith("dictionary<values="):
        text = text[len("dictionary<values=") :].split(",")[0]
    if "list<" in text:
        return f"list<{family(text.rsplit(': ', 1)[-1].rstrip('>').removesuffix(' not null'))}>"
    if text.startswith(("int", "uint")):
        return "integer"
    if text in ("string", "large_string", "string_view"):
        return "text"
    if text in ("halffloat", "float", "double"):
        return "number"
    return "boolean" if text == "bool" else text


@dataclass(frozen=True)
class Schema:
    """The columns of a model's data, in the order in which the model reads them.

    unique: columns which together name a row at most once.
    """

    fields: tuple[Field, ...]
    unique: tuple[str, ...] = ()

    def one(self, kind: str) -> Field:
        """The only field of this kind. Raises KeyError when there is none."""
        for field in self.fields:
            if field.kind == kind:
                return field
        raise KeyError(f"The schema has no {kind} column; it has {', '.join(f'{f.name} ({f.kind})' for f in self.fields)}.")

    @property
    def label(self) -> Field | None:
        return next((field for field in self.fields if field.is_label), None)

    @property
    def inputs(self) -> tuple[Field, ...]:
        """The fields that are not labels."""
        return tuple(field for field in self.fields if not field.is_label)

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    def select(self, kinds: Iterable[str]) -> Schema:
        """The schema of the fields of these kinds only."""
        wanted = set(kinds)
        fields = tuple(field for field in self.fields if field.kind in wanted)
        names = {field.name for field in fields}
        return Schema(fields, self.unique if names.issuperset(self.unique) else ())

    def with_types(self, types: dict[str, str]) -> Schema:
        """The same schema, completed with the Arrow types that were seen."""
        return replace(self, fields=tuple(replace(f, arrow=types.get(f.name, f.arrow)) for f in self.fields))

    def to_json(self) -> dict[str, Any]:
        return {"fields": [asdict(field) for field in self.fields], "unique": list(self.unique)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Schema:
        fields = tuple(Field(**{**field, "classes": tuple(field.get("classes", ()))}) for field in value["fields"])
        return cls(fields, tuple(value["unique"]))

    @property
    def digest(self) -> str:
        """The first 16 hex digits of the SHA-256 of the schema's JSON."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]
