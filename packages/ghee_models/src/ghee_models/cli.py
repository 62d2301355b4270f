"""The command `ghee-models`: list, describe, check, train, evaluate, predict, promote, reproduce.

Exit codes: 0 well, 1 an error (a gate of `reproduce` not met among them), 2 wrong settings or data, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from rich.console import Console
from rich.table import Table

from ghee_models import registry
from ghee_models.errors import ConfigError, DataError, ModelsError, UnknownModelError

if TYPE_CHECKING:
    from ghee_models.training import TrainResult


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; prints results to standard output and errors to standard error."""
    parsed = _parse(arguments)
    try:
        for plugin in parsed.plugin:
            import_plugin(plugin)
        return int(parsed.run(parsed))
    except (ConfigError, DataError, UnknownModelError) as error:
        return _fail(parsed, error, 2)
    except ModelsError as error:
        return _fail(parsed, error, 1)
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        from ghee.errors import GheeError  # not before it is needed: it imports all of ghee

        if not isinstance(error, GheeError):
            raise
        return _fail(parsed, error, 1)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may stand before and after options, which argparse alone does not allow."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(parsed, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *rest]
    return parsed


def _fail(parsed: argparse.Namespace, error: Exception, code: int) -> int:
    if parsed.json and isinstance(error, DataError):
        print(json.dumps(error.report.to_json(), indent=2))
    elif parsed.json:
        print(json.dumps({"error": type(error).__name__, "message": str(error)}, indent=2))
    else:
        print(f"ghee-models: {error}", file=sys.stderr)
    return code


def import_plugin(name: str) -> None:
    """Imports a module or a .py file, whose `@register` makes its models known. Raises ConfigError."""
    path = Path(name)
    try:
        if path.suffix == ".py":
            spec = importlib.util.spec_from_file_location(path.stem, path)
            if spec is None or spec.loader is None or not path.is_file():
                raise ConfigError(f"--plugin {name}: there is no such file.")
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
            cloudpickle.register_pickle_by_value(module)  # the ranks need not find the file
        else:
            importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"--plugin {name} cannot be imported: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ghee-models", description="Ready models on ghee, MLflow and hydra.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str, *, overrides: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print JSON")
        made.add_argument("--plugin", action="append", default=[], help="module or .py file with models of your own")
        if overrides:
            made.add_argument("overrides", nargs="*", help="hydra overrides: model=fm data.path=clicks/ trainer.epochs=3")
            made.add_argument("--config-dir", action="append", default=[], help="folder of your own configuration groups")
            made.add_argument("--on", default="local", choices=["local", "inline"], help="where ghee runs the stages")
        return made

    made = command("list", _list, "the known models")
    made.add_argument("--task", help="recommendation, ctr, classification or rating")
    made.add_argument("--filter", default="*", help="pattern of ids, such as '*fm'")
    made = command("describe", _describe, "a model's settings, schema, references and paper; or what a kept model is")
    made.add_argument("id", nargs="?", help="the model, such as lightgcn")
    made.add_argument("--kept", help="a trained one instead: models:/name@alias, models:/name/3, or a folder")
    made = command("check", _check, "is the data what a model needs? exit code 2 if not", overrides=True)
    made.add_argument("--kept", help="check data to predict against this kept model (models:/... or a folder)")
    made.add_argument("--everything", action="store_true", help="look at all rows, not at a sample")
    made.add_argument("--show-values", action="store_true", help="print some of the offending values")
    made = command("train", _train, "train, evaluate, keep and perhaps register a model", overrides=True)
    made.add_argument("-m", "--multirun", action="store_true", help="a sweep: model=fm,deepfm model.lr=1e-3,5e-3")
    made.add_argument("--save-to", help="also write the model to this new folder")
    made = command("evaluate", _evaluate, "metrics of a kept model on labelled data")
    made.add_argument("--kept", required=True, help="models:/name@alias, models:/name/3, or a folder")
    made.add_argument("--data", required=True, help="Parquet: folder, file, glob or URL")
    made.add_argument("--k", type=int, action="append", help="length of the lists of ranking metrics (default 10)")
    made.add_argument("--on", default="local", choices=["local", "inline"])
    made = command("predict", _predict, "predict for new rows")
    made.add_argument("--kept", required=True, help="models:/name@alias, models:/name/3, or a folder")
    made.add_argument("--data", required=True, help="Parquet: folder, file, glob or URL")
    made.add_argument("--out", required=True, help="folder or URL of the Parquet that is written")
    made.add_argument("--overwrite", action="store_true", help="replace what is in --out")
    made.add_argument("--k", type=int, default=10, help="recommendation: items per user")
    made.add_argument("--vectors", action="store_true", help="recommendation: the users' vectors, not items")
    made.add_argument("--keep-seen", action="store_true", help="recommendation: do not leave out items of training")
    made.add_argument("--replicas", type=int, default=1, help="processes that predict")
    made.add_argument("--preprocess-replicas", type=int, default=1, help="processes that read and encode rows for them")
    made.add_argument("--on", default="local", choices=["local", "inline"])
    made = command("promote", _promote, "point an alias of a registered model at a version")
    made.add_argument("name")
    made.add_argument("--version", required=True)
    made.add_argument("--alias", default="champion")
    made.add_argument("--require", action="append", default=[], help="such as 'ndcg@10>=0.31'; may be repeated")
    made = command("reproduce", _reproduce, "our figure beside the published one, on the same split", overrides=True)
    made.add_argument("--all", action="store_true", help="every model that names a reference")
    made.add_argument("--track", action="store_true", help="keep the runs in MLflow")
    return parser


def _list(parsed: argparse.Namespace) -> int:
    try:
        ids = registry.list_models(parsed.task, parsed.filter)
    except ValueError as error:
        raise ConfigError(f"--task {parsed.task}: {error}; allowed: recommendation, ctr, classification, rating.") from None
    if parsed.json:
        print(json.dumps([registry.describe(id) for id in ids], indent=2))
        return 0
    table = Table("model", "tasks", "data", "what it is")
    for id in ids:
        card = registry.card(id)
        table.add_row(id, ", ".join(card.tasks), str(card.data), card.summary)
    _show(table)
    return 0


def _describe(parsed: argparse.Namespace) -> int:
    if bool(parsed.id) == bool(parsed.kept):
        raise ConfigError("Name a model, or a kept one with --kept; one of them.")
    if parsed.kept:
        return _describe_kept(parsed)
    found = registry.describe(parsed.id)
    if parsed.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{found['id']}: {found['summary']}\n{found['paper']}\ntasks: {', '.join(found['tasks'])}; data: {found['data']}")
    for name, meaning in found["schema"].items():
        print(f"  {name}: {meaning}")
    table = Table("setting", "type", "default")
    for row in found["config"]:
        table.add_row(f"model.{row['name']}", row["type"], str(row["default"]))
    _show(table)
    for r in found["references"]:
        print(f"reference: {r['metric']} {r['figure']} on {r['protocol']} ({r['source']}); gate {r['gate']}")
    return 0


def _describe_kept(parsed: argparse.Namespace) -> int:
    from ghee_models.prediction import describe_kept

    found = describe_kept(parsed.kept)
    if parsed.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"{parsed.kept}: a trained {found['id']}, written by ghee-models {found['ghee_models']}")
    for name, meaning in found["schema"].items():
        print(f"  {name}: {meaning}")
    table = Table("setting", "value")
    for topic, values in found["settings"].items():
        for name, value in values.items():
            table.add_row(f"{topic}.{name}", str(value))
    _show(table)
    for name, value in found["metrics"].items():
        print(f"{name} of the test part: {value:.4f}")
    return 0


def _check(parsed: argparse.Namespace) -> int:
    from ghee_models.checker import check_schema
    from ghee_models.composition import compose
    from ghee_models.parts import paths_of

    if parsed.kept:
        from ghee_models.prediction import load

        composed = compose(parsed.overrides, parsed.config_dir)
        schema, training = load(parsed.kept).predict_schema, False
    else:
        composed = compose(parsed.overrides, parsed.config_dir)
        schema, training = registry.load_class(composed.model).make_schema(composed.settings.data), True
    report = check_schema(
        schema,
        paths_of(composed.settings.data),
        everything=parsed.everything,
        show_values=parsed.show_values,
        training=training,
    )
    print(json.dumps(report.to_json(), indent=2) if parsed.json else report)
    return 0 if report.ok else 2


def _train(parsed: argparse.Namespace) -> int:
    from ghee_models.composition import compose, sweep
    from ghee_models.training import train_configured

    if parsed.multirun and parsed.save_to:
        raise ConfigError("--save-to names one folder; a sweep trains several models. Leave one of them out.")
    chosen = (
        sweep(parsed.overrides, parsed.config_dir) if parsed.multirun else [compose(parsed.overrides, parsed.config_dir)]
    )
    results = [train_configured(c.model, c.config, c.settings, save_to=parsed.save_to, on=parsed.on) for c in chosen]
    if parsed.json:
        print(json.dumps([_result_json(result) for result in results], indent=2))
        return 0
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    table = Table("model", *names, "kept epoch", "seconds", "kept as", title="test part")
    for result in results:
        cells = [f"{result.metrics[name]:.4f}" if name in result.metrics else "" for name in names]
        table.add_row(result.model, *cells, str(result.best_epoch + 1), f"{result.seconds:.1f}", result.model_uri)
    _show(table)
    for number, result in enumerate(results):
        if parsed.multirun:
            print(f"{result.model_uri}: {' '.join(chosen[number].overrides)}")
    return 0


def _result_json(result: TrainResult) -> dict[str, Any]:
    return {
        "model": result.model,
        "model_uri": result.model_uri,
        "run_id": result.run_id,
        "metrics": result.metrics,
        "valid": result.valid,
        "best_epoch": result.best_epoch,
        "epochs": len(result.history),
        "seconds": result.seconds,
        "digests": result.digests,
    }


def _evaluate(parsed: argparse.Namespace) -> int:
    from ghee_models.prediction import evaluate

    metrics = evaluate(parsed.kept, parsed.data, ks=tuple(parsed.k or [10]), on=parsed.on)
    if parsed.json:
        print(json.dumps(metrics, indent=2))
        return 0
    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.4f}")
    _show(table)
    return 0


def _predict(parsed: argparse.Namespace) -> int:
    from ghee_models.prediction import PredictResult, predict
    from ghee_models.settings import PredictOptions

    options = PredictOptions(parsed.k, "vectors" if parsed.vectors else "items", not parsed.keep_seen)
    done = predict(
        parsed.kept,
        parsed.data,
        out=parsed.out,
        options=options,
        replicas=parsed.replicas,
        preprocess_replicas=parsed.preprocess_replicas,
        overwrite=parsed.overwrite,
        on=parsed.on,
    )
    assert isinstance(done, PredictResult), "with `out` the result is written"
    if parsed.json:
        print(json.dumps({"out": done.out, "rows": done.rows, "seconds": done.seconds}))
    else:
        print(f"{done.rows} rows predicted in {done.seconds:.1f} s, written to {done.out}")
    return 0


def _promote(parsed: argparse.Namespace) -> int:
    import re

    from ghee_models.tracking import promote

    require: dict[str, str] = {}
    for text in parsed.require:
        name, sign, bound = re.match(r"([^<>=]*)([<>]=?)?(.*)", text).groups()  # type: ignore[union-attr]
        before = f"{require[name.strip()]}," if name.strip() in require else ""
        require[name.strip()] = f"{before}{sign or ''}{bound}"
    uri = promote(parsed.name, parsed.version, parsed.alias, require)
    print(json.dumps({"uri": uri}) if parsed.json else f"{uri} is now version {parsed.version}")
    return 0


def _reproduce(parsed: argparse.Namespace) -> int:
    from ghee_models.reproduction import reproduce

    ids = [word for word in parsed.overrides if "=" not in word]
    if parsed.all:
        ids = [id for id, card in registry.cards().items() if card.references]
    if not ids:
        raise ConfigError("Name the model to reproduce, or --all.")
    overrides = [word for word in parsed.overrides if "=" in word]
    found = [row for id in ids for row in reproduce(id, overrides, track=parsed.track, on=parsed.on)]
    if parsed.json:
        rows = [
            {
                "model": r.model, "protocol": r.reference.protocol, "metric": r.reference.metric, "ours": r.value,
                "reference": r.reference.figure, "gate": r.reference.gate, "split_digest": r.split_digest,
                "passed": r.passed,
            }
            for r in found
        ]  # fmt: skip
        print(json.dumps(rows, indent=2))
    else:
        table = Table("model", "metric", "ours", "reference", "gate", "test split", "epochs", "s / epoch", "passed")
        for r in found:
            split = r.split_digest if r.same_split else f"{r.split_digest}, not {r.reference.split_digest}"
            epochs, pace = str(r.epochs), f"{r.seconds_per_epoch:.3f}"
            ours, theirs = f"{r.value:.4f}", f"{r.reference.figure:.4f}"
            passed = "yes" if r.passed else "NO"
            metric = f"{r.reference.metric}, mean of {r.reference.folds} folds" if r.reference.folds else r.reference.metric
            table.add_row(r.model, metric, ours, theirs, r.reference.gate, split, epochs, pace, passed)
        _show(table)
    return 0 if all(r.passed for r in found) else 1


def _show(table: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a pipe has no width: cells must not be cut for it
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
