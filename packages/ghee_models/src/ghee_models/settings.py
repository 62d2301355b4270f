"""Every setting: one dataclass per topic, each field with its unit, default and reason. Checked strictly; no I/O."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
from collections.abc import Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ghee_models.errors import ConfigError
from ghee_models.schema import LABELS, Field, Schema

T = TypeVar("T")


@dataclass
class DataConfig:
    """What the data is: where it lies and what its columns mean."""

    path: str = ""  # folder, file, glob or URL of Parquet; `dataset:ml-100k` is the public data set
    files: list[str] = field(default_factory=list)  # these very files instead of `path`; a dataset of cumin's names them
    user: str = "user_id"  # interactions: the column of user ids
    item: str = "item_id"  # interactions: the column of item ids
    fields: dict[str, str] = field(default_factory=dict)  # sparse rows: column -> categorical, categories or numeric
    label: str = ""  # sparse rows: the column of the label
    label_kind: str = "binary"  # binary, class or rating
    positive_from: float | None = None  # binary: the number from which on a row is positive; none: the column is 0/1
    minimum: dict[str, float] = field(default_factory=dict)  # numeric column or rating -> the smallest value allowed
    maximum: dict[str, float] = field(default_factory=dict)  # numeric column or rating -> the largest value allowed
    classes: list[str] = field(default_factory=list)  # class: the labels that are allowed, as text; empty: all
    nullable: list[str] = field(default_factory=list)  # columns that may hold nulls; a null counts as unknown
    unique: list[str] = field(default_factory=list)  # columns which together name a row at most once
    unknown: str = "fallback"  # an id not seen in training: fallback (popular items, zero vector), empty, or error
    min_count: int = 1  # values seen more rarely in training count as unknown
    content_id: str = ""  # the data set's cumin content id, where it has one; kept with the run


@dataclass
class SplitConfig:
    """How rows are split into train, validation and test."""

    kind: str = "hash"  # hash (streams), recbole, recbole-by-user, folds (published protocols; in memory), or given
    ratios: list[float] = field(default_factory=lambda: [8.0, 1.0, 1.0])  # train, validation, test
    seed: int = 2020
    folds: int = 5  # folds: how many there are
    fold: int = 0  # folds: the one that is the test part; the others are cut into train and validation by the ratios
    stratify: str = ""  # folds: the column whose values every fold has alike
    valid: str = ""  # given: path of the validation rows; data.path is the training rows
    test: str = ""  # given: path of the test rows


DEVICES = ("auto", "cpu", "cuda")
SAMPLERS = ("uniform", "popularity", "in-batch", "mixed")


@dataclass
class SamplerConfig:
    """How negative items are drawn in training from implicit feedback."""

    name: str = "uniform"  # uniform, popularity, in-batch or mixed
    negatives: int = 1  # per positive
    alpha: float = 0.75  # popularity: the exponent of an item's count
    mix: float = 0.5  # mixed: the share that is drawn in-batch


@dataclass
class TrainerConfig:
    """How a model is trained."""

    epochs: int = 20  # at most; early stopping ends before
    batch_size: int = 4096  # rows per rank and step
    seed: int = 2020
    patience: int = 10  # epochs without a better validation metric before training stops; 0: never stops early
    min_epochs: int = 0  # patience counts from here on: some models sit on a plateau first
    monitor: str = ""  # the validation metric that chooses the epoch; empty: the task's usual one
    ranks: int = 1  # processes of the training stage, data parallel
    preprocess_replicas: int = 1  # processes of the preprocessing stage
    threads: int = 1  # of torch in each rank
    shuffle: bool = True  # a new order of the training rows in every epoch
    ordered: bool = True  # batches in the source's order: one seed, one result; false: first ready, first served
    device: str = "auto"  # of training: cpu, cuda (a GPU for each rank), or auto (cuda where the driver sees one)
    checkpoint_seconds: float = 30.0  # a killed training goes on at the end of an epoch so long before; negative: never
    checkpoint_steps: int = 0  # also after so many steps within an epoch, for epochs that take hours; 0: not


@dataclass
class EvalConfig:
    """How a model is evaluated."""

    k: list[int] = field(default_factory=lambda: [10])  # lengths of the lists of ranking metrics
    block: int = 1024  # users that are scored at once: users x items x 4 bytes are held
    max_rows: int = 20_000_000  # rows of validation or test that a rank holds, encoded; more is an error


@dataclass
class TrackingConfig:
    """Where runs and models are kept."""

    uri: str = ""  # MLflow tracking URI; empty: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db
    experiment: str = "ghee-models"
    register_as: str = ""  # name in the model registry; empty: the model is logged, not registered
    alias: str = ""  # alias that is set on the new version, such as candidate
    system_metrics: bool = True  # CPU, memory and network of rank 0's machine, every 10 s
    enabled: bool = True


@dataclass
class PredictOptions:
    """What a prediction gives. Raises ConfigError for values outside what is allowed."""

    k: int = 10  # recommendation: items per user
    output: str = "items"  # recommendation: items (top k) or vectors (the user's vector)
    exclude_seen: bool = True  # recommendation: leave out what the user had in training

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; it must be at least 1.")
        if self.output not in ("items", "vectors"):
            raise ConfigError(f"output is {self.output!r}; allowed: items, vectors.")


@dataclass
class Settings:
    """All settings of one training but the model's own."""

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def build(cls: type[T], values: Mapping[str, Any], *, where: str) -> T:
    """An instance of the dataclass `cls` from plain values (of YAML, JSON or a dict).

    Raises ConfigError that lists every unknown key (with the nearest known one) and every value of a wrong type.
    """
    problems: list[str] = []
    made = _build(cls, values, where, problems)
    if problems:
        raise ConfigError("\n".join(["The settings are wrong:", *(f"  {problem}" for problem in problems)]))
    return made


def _build(cls: type[T], values: Mapping[str, Any], where: str, problems: list[str]) -> T:
    hints = get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f" Did you mean {where}.{near[0]}?" if near else ""
            problems.append(f"{where}.{key} is unknown; known are {', '.join(known) or 'none'}.{hint}")
        else:
            arguments[key] = _convert(hints[key], value, f"{where}.{key}", problems)
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name not in arguments and f.default is NO_DEFAULT and f.default_factory is NO_DEFAULT:
            problems.append(f"{where}.{f.name} is missing; it has no default.")
            arguments[f.name] = None
    return cls(**arguments)


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return _build(hint, value, where, problems)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, where, problems)
    if origin is list and isinstance(value, list | tuple):
        return [_convert(args[0], v, f"{where}[{n}]", problems) for n, v in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {str(k): _convert(args[1], v, f"{where}.{k}", problems) for k, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool)
    if hint is Any or plain:
        return value
    name = getattr(hint, "__name__", str(hint)) if origin is None else str(hint)
    problems.append(f"{where} is {value!r} ({type(value).__name__}); it must be {name}.")
    return value


def check_settings(settings: Settings) -> None:
    """Raises ConfigError that lists every value outside what is allowed."""
    d, s, t, e, p = settings.data, settings.split, settings.trainer, settings.eval, settings.sampler
    rules: list[tuple[bool, str]] = [
        (d.unknown in ("fallback", "empty", "error"), f"data.unknown is {d.unknown!r}; allowed: fallback, empty, error."),
        (d.label_kind in LABELS, f"data.label_kind is {d.label_kind!r}; allowed: {', '.join(LABELS)}."),
        (not (d.path and d.files), "data.path and data.files are given; one of them says what the rows are."),
        (d.min_count >= 1, f"data.min_count is {d.min_count}; it must be at least 1."),
        (
            s.kind in ("hash", "recbole", "recbole-by-user", "folds", "given"),
            f"split.kind is {s.kind!r}; allowed: hash, recbole, recbole-by-user, folds, given.",
        ),
        (
            len(s.ratios) == 3 and min(s.ratios, default=0) >= 0 and sum(s.ratios) > 0 and s.ratios[0] > 0,
            f"split.ratios is {s.ratios}; it must be three numbers (train, validation, test), the first above 0.",
        ),
        (0 <= s.fold < s.folds, f"split.fold is {s.fold}; it must be from 0 to below split.folds, {s.folds}."),
        (s.kind != "given" or bool(s.valid), "split.kind is given, but split.valid names no path."),
        (p.name in SAMPLERS, f"sampler.name is {p.name!r}; allowed: {', '.join(SAMPLERS)}."),
        (p.negatives >= 1, f"sampler.negatives is {p.negatives}; it must be at least 1."),
        (0 <= p.mix <= 1, f"sampler.mix is {p.mix}; it must be a share from 0 to 1."),
        (t.epochs >= 1, f"trainer.epochs is {t.epochs}; it must be at least 1."),
        (t.batch_size >= 1, f"trainer.batch_size is {t.batch_size}; it must be at least 1."),
        (t.ranks >= 1, f"trainer.ranks is {t.ranks}; it must be at least 1."),
        (t.threads >= 1, f"trainer.threads is {t.threads}; it must be at least 1."),
        (t.device in DEVICES, f"trainer.device is {t.device!r}; allowed: {', '.join(DEVICES)}."),
        (t.checkpoint_steps >= 0, f"trainer.checkpoint_steps is {t.checkpoint_steps}; it must be at least 0."),
        (bool(e.k) and min(e.k, default=0) >= 1, f"eval.k is {e.k}; it must be lengths of at least 1."),
    ]
    bad_kinds = {k: v for k, v in d.fields.items() if v not in ("categorical", "categories", "numeric", "user", "item")}
    rules += [
        (False, f"data.fields.{name} is {kind!r}; allowed: categorical, categories, numeric, user, item.")
        for name, kind in bad_kinds.items()
    ]
    numbers = {name for name, kind in d.fields.items() if kind == "numeric"} | (
        {d.label} if d.label_kind == "rating" else set()
    )
    for name in sorted({*d.minimum, *d.maximum} - numbers):
        text = f"data.minimum or data.maximum names {name!r}; they are for numeric columns and ratings"
        rules.append((False, f"{text}: {', '.join(sorted(numbers)) or 'there is none'}."))
    rules.append((not d.classes or d.label_kind == "class", "data.classes is given, but data.label_kind is not class."))
    problems = [text for holds, text in rules if not holds]
    if problems:
        raise ConfigError("\n".join(["The settings are wrong:", *(f"  {problem}" for problem in problems)]))


def interactions_schema(data: DataConfig) -> Schema:
    """user and item columns."""
    fields_ = (
        Field(data.user, "user", nullable=data.user in data.nullable),
        Field(data.item, "item", nullable=data.item in data.nullable),
    )
    return Schema(fields_, tuple(data.unique))


def sparse_schema(data: DataConfig) -> Schema:
    """The declared fields (single ones before lists) and the label. Raises ConfigError when one is not declared."""
    if not data.fields or not data.label:
        raise ConfigError(
            "A model of sparse rows needs data.fields (column -> categorical, categories or numeric) and data.label; "
            f"got fields {dict(data.fields)} and label {data.label!r}."
        )
    kinds = {name: {"user": "categorical", "item": "categorical"}.get(kind, kind) for name, kind in data.fields.items()}
    ordered = sorted(kinds.items(), key=lambda pair: pair[1] == "categories")
    inputs = tuple(
        Field(name, kind, name in data.nullable, data.minimum.get(name), data.maximum.get(name)) for name, kind in ordered
    )
    low, high = data.minimum.get(data.label), data.maximum.get(data.label)
    label = Field(
        data.label, data.label_kind, minimum=low, maximum=high, classes=tuple(data.classes), positive_from=data.positive_from
    )
    return Schema((*inputs, label), tuple(data.unique))


def config_digest(config: Any, settings: Settings) -> str:
    """The first 8 hex digits of the SHA-256 of the model's and all other settings but tracking."""
    values = {"model": asdict(config), **{k: v for k, v in asdict(settings).items() if k != "tracking"}}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
