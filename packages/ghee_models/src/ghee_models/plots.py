"""Pictures of a training for people: learning curves, and a table of what is recommended or predicted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from ghee_models.run import Metrics


def learning_curves(history: Sequence[Metrics], monitor: str, best_epoch: int) -> Figure:
    """The loss of training and the monitored validation metric by epoch; the kept epoch is marked."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    left.plot(epochs, [row["loss"] for row in history], color="#1f6f8b")
    left.set(title="training loss", xlabel="epoch")
    name = f"valid_{monitor}"
    if history and name in history[0]:
        right.plot(epochs, [row[name] for row in history], color="#c05a2e")
        right.axvline(best_epoch + 1, color="grey", linestyle=":", label=f"kept: epoch {best_epoch + 1}")
        right.legend(frameon=False)
    right.set(title=f"validation {monitor}", xlabel="epoch")
    return figure


def table(rows: pa.RecordBatch, title: str, limit: int = 12) -> Figure:
    """The first rows as a picture of a table; long lists and floats are shortened."""
    cells = [[_text(value) for value in row.values()] for row in rows.slice(0, limit).to_pylist()]
    figure = Figure(figsize=(11, 0.8 + 0.32 * max(len(cells), 1)), layout="constrained")
    axes = figure.subplots()
    axes.axis("off")
    axes.set_title(title, loc="left")
    if cells:
        drawn = axes.table(cellText=cells, colLabels=rows.schema.names, loc="upper left", cellLoc="left")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(8)
        drawn.auto_set_column_width(list(range(len(rows.schema.names))))
    return figure


def _text(value: Any) -> str:
    if isinstance(value, list):
        shown = ", ".join(_text(v) for v in value[:8])
        return f"{shown}, ..." if len(value) > 8 else shown
    return f"{value:.4g}" if isinstance(value, float) else str(value)
