"""A saved model as an MLflow pyfunc: `mlflow.pyfunc.load_model` and `mlflow models serve` find `_load_pyfunc` here.

MLflow itself is not imported: it is what imports us.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from ghee_models import artifact
from ghee_models.checker import check_batches
from ghee_models.contract import Model
from ghee_models.schema import Field

_TYPES = {"integer": pa.int64(), "text": pa.string(), "number": pa.float64(), "boolean": pa.bool_()}


class PyFunc:
    """Predicts on pandas DataFrames: the columns of the model's predict schema in, its result columns out."""

    def __init__(self, model: Model[Any]) -> None:
        self.model = model

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One or more rows of results per row. `params`: k, output, exclude_seen (PredictOptions).

        Raises DataError when a column is missing, of another type, or null where it must not be.
        """
        model, schema = self.model, self.model.predict_schema
        rows = pa.RecordBatch.from_arrays([_array(frame, f) for f in schema.fields], names=schema.names)
        if rows.num_rows:
            check_batches(schema, [rows]).raise_if_bad()
        before = model.options
        model.options = replace(before, **{k: v for k, v in (params or {}).items() if v is not None})
        try:
            results = model.postprocess(model.predict(model.predict_preprocess(rows)), rows)
        finally:
            model.options = before
        return results.to_pandas()


def _array(frame: pd.DataFrame, f: Field) -> pa.Array:
    if f.name not in frame.columns:
        raise KeyError(f"The rows have no column {f.name!r}; they have {', '.join(map(str, frame.columns))}.")
    kind = arrow_type(f)
    values = [None if _is_null(v) else v for v in frame[f.name].tolist()]
    return pa.array(values, kind)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def arrow_type(f: Field) -> pa.DataType:
    """The Arrow type in which the field is read: that of training, in its widest form."""
    from ghee_models.schema import family

    name = family(f.arrow or "double")
    if name.startswith("list<"):
        return pa.list_(_TYPES[name[5:-1]])
    return _TYPES[name]


def _load_pyfunc(path: str) -> PyFunc:
    return PyFunc(artifact.load(artifact.find(Path(path))))
