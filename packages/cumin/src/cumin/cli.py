"""The command line: `cumin COMMAND`, each with `--json`. Thin: every command calls one function of the package."""

import argparse
import gc
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cumin.errors import ConfigError, CuminError, StoreError

if TYPE_CHECKING:  # each command imports what it needs: to import all of it takes a second
    from cumin.compare import Change
    from cumin.planning import Plan
    from cumin.recipe import Recipe
    from cumin.store import Store

Answer = tuple[Any, list[str], int]  # for --json, for people, the exit code


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Says on stderr what is being done, once a command has taken over a second."""
    latest = ["working"]
    status: list[Any] = []
    late = threading.Event()

    def begin() -> None:
        if not quiet and sys.stderr.isatty():
            from rich.console import Console

            status.append(Console(stderr=True).status(latest[0]))
            status[0].start()
        late.set()

    def tell(message: str) -> None:
        if status:
            status[0].update(message)
        elif late.is_set() and message != latest[0] and not quiet:
            print(message, file=sys.stderr)
        latest[0] = message

    timer = threading.Timer(1.0, begin)
    timer.daemon = True
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
        timer.join()
        if status:
            status[0].stop()


def _store(arguments: argparse.Namespace) -> "Store":
    from cumin.store import open_store

    options = dict(_pair(each) for each in arguments.storage_option)
    return open_store(arguments.store, options)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: write NAME=VALUE.")
    return name, value


def _recipe(arguments: argparse.Namespace) -> "tuple[Recipe, Store]":
    from cumin import config
    from cumin.store import open_store

    values = config.read_file(arguments.file)
    folder = Path(arguments.file).parent
    store_url = arguments.store or values.pop("store", None)
    values.pop("store", None)
    if store_url and "://" not in store_url and not arguments.store:
        store_url = os.path.join(folder, store_url)
    store = open_store(store_url, dict(_pair(each) for each in arguments.storage_option))
    if getattr(arguments, "partitions", None):
        values["partitions"] = list(config.range_of(arguments.partitions))
    overrides = dict(_pair(each) for each in arguments.param)
    return config.recipe_from(values, folder=folder, overrides=overrides, store=store), store


def _lines(changes: "list[Change]") -> list[str]:
    return [line for change in changes for line in change.lines()]


# -- commands -------------------------------------------------------------------------------------


def run_plan(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """What a build would do: whether it is there, what it reads, and what differs from the nearest build of its name."""
    from cumin.planning import make_plan

    recipe, store = _recipe(arguments)
    tell("planning")
    plan = make_plan(recipe)
    hit = store.entry(plan.build_id) is not None
    data: dict[str, Any] = {"build_id": plan.build_id, "hit": hit, "inputs": {}}
    lines = [f"{recipe.name}: {'nothing to run, it is there' if hit else 'would run'}", f"  build id  {plan.build_id}"]
    for name, table in plan.tables.items():
        parts = plan.state[name]
        files = sum(len(part.lines) for part in parts.values())
        data["inputs"][name] = {
            "strength": table.strength,
            "partitions": len(parts),
            "of": len(table.partitions),
            "files": files,
        }
        lines.append(
            f"  reads     {name}: {len(parts)} of {len(table.partitions)} partitions, {files} files, by {table.strength}"
        )
    if plan.incremental and not hit:
        waiting = [each.key for each in plan.subplans if store.record(_sub(each.build_id)) is None]
        data["partitions"] = {"to_build": waiting, "all": len(plan.subplans)}
        lines.append(
            f"  builds    {len(waiting)} of {len(plan.subplans)} partitions"
            + (f": {', '.join(waiting[:8])}" if waiting else "")
        )
    elif recipe.partition_by and not plan.incremental and not hit:
        lines.append("  builds    the whole: no lookback= says that its partitions can be built one by one")
    if not hit:
        data["why"] = _why_not(plan, store, lines)
    return data, lines, 0


def _sub(build_id: str) -> str:
    return f"partitions/{build_id[3:5]}/{build_id[3:]}.json"


def _why_not(plan: "Plan", store: "Store", lines: list[str]) -> list[dict[str, Any]] | None:
    """Field by field, what differs from the nearest earlier build of the name: the one with the fewest changes."""
    from cumin.compare import recipe_changes, view_of_manifest, view_of_plan

    after = view_of_plan(plan)
    best: tuple[int, list[Change]] | None = None
    for each in store.versions(plan.recipe.name)[-10:]:
        entry = store.entry(each["build_id"])
        if entry is None:
            continue
        changes = recipe_changes(view_of_manifest(store.manifest(entry["manifest"])), after, store)
        if best is None or len(changes) <= len(best[1]):
            best = (each["version"], changes)
    if best is None:
        lines.append("  why       it was never built")
        return None
    lines.append(f"  why       differs from {plan.recipe.name}@v{best[0]}:")
    lines += [f"    {line}" for line in _lines(best[1])]
    return [change.to_json() for change in best[1]]


def run_build(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Build what a dataset file says, or find it."""
    from cumin.building import build_recipe

    recipe, store = _recipe(arguments)
    dataset = build_recipe(recipe, store, progress=tell)
    data = {
        "name": dataset.name,
        "version": dataset.version,
        "build_id": dataset.build_id,
        "content_id": dataset.content_id,
        "hit": dataset.hit,
        "rows": dataset.rows,
        "files": dataset.files(),
        "stats": dataset.manifest["stats"],
    }
    return data, [*dataset.explain().splitlines(), f"  version     {dataset.name}@v{dataset.version}"], 0


def run_show(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """One build: its ids, columns, parameters and query; as JSON its whole manifest."""
    from cumin.dataset import load

    dataset = load(arguments.build, _store(arguments))
    recipe = dataset.manifest["recipe"]
    lines = [*dataset.explain().splitlines()[1:], f"  created     {dataset.manifest['created']}",
             f"  engine      {recipe['engine']['name']} {recipe['engine']['version']}", "  columns"]  # fmt: skip
    lines += [f"    {each.name}: {each.type}" for each in dataset.schema]
    lines += [f"  parameter   {name} = {value['value']}" for name, value in recipe["params"].items()]
    return dataset.manifest, [f"{dataset.name}@v{dataset.version}", *lines, "", recipe["text"]], 0


def run_log(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """The versions of a name, newest first; without one, all names."""
    store = _store(arguments)
    if arguments.name is None:
        names = store.names()
        return names, names or ["no dataset has been built here"], 0
    versions = store.versions(arguments.name)
    if not versions:
        raise ConfigError(f"{arguments.name!r} was never built here. Names: {', '.join(store.names()) or 'none'}.")
    lines = [f"v{v['version']}  {v['created'][:19]}  {v['build_id'][:19]}  {v['content_id']}" for v in reversed(versions)]
    return versions, lines, 0


def run_why(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Field by field, what two recipes differ in, and whether their rows do."""
    from cumin.compare import recipe_changes, view_of_manifest
    from cumin.dataset import load

    store = _store(arguments)
    first, second = load(arguments.a, store), load(arguments.b, store)
    changes = recipe_changes(view_of_manifest(first.manifest), view_of_manifest(second.manifest), store)
    same = first.content_id == second.content_id
    lines = _lines(changes) or ["the same build"]
    lines.append(f"content: {'the same rows' if same else f'{first.content_id} -> {second.content_id}'}")
    return {"changes": [change.to_json() for change in changes], "same_content": same}, lines, 0


def run_diff(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """How the columns, partitions and, with `--rows`, the rows of two builds differ."""
    from cumin.compare import data_changes, row_changes
    from cumin.dataset import load

    store = _store(arguments)
    first, second = load(arguments.a, store), load(arguments.b, store)
    data = data_changes(first, second)
    old, new = data["content"]
    lines = [f"the same content: {old}" if data["equal"] else f"content: {old} -> {new}",
             f"rows: {data['rows'][0]:,} -> {data['rows'][1]:,}"]  # fmt: skip
    for name in (
        "columns_added",
        "columns_gone",
        "columns_changed",
        "partitions_changed",
        "partitions_added",
        "partitions_gone",
    ):
        if data[name]:
            more = f" and {len(data[name]) - 12} more" if len(data[name]) > 12 else ""
            lines.append(f"{name.replace('_', ' ')}: {', '.join(data[name][:12])}{more}")
    lines += [f"type of {name}: {old} -> {new}" for name, (old, new) in data["types_changed"].items()]
    if arguments.rows:
        tell("comparing rows")
        key = [each for text in arguments.key for each in text.split(",")]
        data["row_changes"] = row_changes(first, second, key, arguments.limit)
        for name, found in data["row_changes"].items():
            lines.append(f"rows {name}: {found['count']:,}")
            lines += ["    " + ", ".join(f"{k}={v}" for k, v in row.items()) for row in found["first"]]
    return data, lines, 0


def run_lineage(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """What a build was made from and what from it: as text, SVG or OpenLineage, from a build or an MLflow run."""
    from cumin import lineage
    from cumin.dataset import load

    store = _store(arguments)
    if arguments.mlflow:
        from cumin import mlflow

        drawn = mlflow.lineage(arguments.mlflow, uri=arguments.tracking_uri, stores=[store])
    elif arguments.build is None:
        raise ConfigError("Say a build (name, name@v3, a build id), or --mlflow RUN.")
    elif arguments.openlineage:
        event = lineage.openlineage(load(arguments.build, store))
        return event, json.dumps(event, indent=2).splitlines(), 0
    else:
        both = arguments.up == arguments.down
        drawn = lineage.graph(store, arguments.build, up=arguments.up or both, down=arguments.down or both)
    lines = drawn.lines()
    if arguments.svg:
        Path(arguments.svg).write_text(lineage.svg(drawn), encoding="utf-8")
        lines.append(f"drawn: {arguments.svg}")
    return drawn.to_json(), lines, 0


def run_rebuild(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Build again from a manifest alone. Other rows than it names are an error."""
    from cumin.rebuild import rebuild
    from cumin.store import open_store

    store = _store(arguments)
    into = open_store(arguments.into) if arguments.into else None
    dataset = rebuild(store, arguments.build, into=into, progress=tell)
    data = {"build_id": dataset.build_id, "content_id": dataset.content_id, "same": True}
    return data, [f"built again with the same content: {dataset.content_id}"], 0


def run_verify(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Whether the store's files are those of the manifests; exit code 7 with one line for each that is not."""
    from cumin.verify import verify

    store = _store(arguments)
    level = next((name for name in ("bytes", "rows") if getattr(arguments, name)), "stat")
    problems = verify(store, arguments.build, level=level, progress=tell)
    if arguments.rebuild and not problems:
        if arguments.build is None:
            raise ConfigError("verify --rebuild needs a build: one is built at a time.")
        from cumin.rebuild import rebuild

        rebuild(store, arguments.build, progress=tell)
        level = "rebuild"
    good = f"whole, by {level}"
    return {"level": level, "problems": problems}, problems or [good], 7 if problems else 0


def run_pin(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Keep a build from `gc`, under a label if one is given."""
    from cumin.gc import pin

    name = pin(_store(arguments), arguments.build, label=arguments.label, reason=arguments.reason)
    return {"pin": name}, [f"pinned: {name}"], 0


def run_unpin(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Take a pin away."""
    from cumin.gc import unpin

    unpin(_store(arguments), arguments.pin)
    return {"unpinned": arguments.pin}, [f"no longer pinned: {arguments.pin}"], 0


def _markers(uri: str) -> set[str]:
    from cumin import mlflow

    return mlflow.builds_named(uri)


def run_gc(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Delete what no name, pin or MLflow run keeps: first a tombstone, after the days of grace the files."""
    from cumin.gc import GRACE_DAYS, collect

    tell("marking what is named")
    days = GRACE_DAYS if arguments.grace_days is None else arguments.grace_days
    done = collect(_store(arguments), dry_run=arguments.dry_run, grace_days=days, keep=arguments.keep, markers=_markers)
    would = "would be " if arguments.dry_run else ""
    lines = [f"kept: {len(done.kept)} builds"]
    lines += [f"    {build[:19]}  {'; '.join(why)}" for build, why in sorted(done.kept.items())]
    lines += [f"{would}given a tombstone: {len(done.marked)} builds (deleted after {days:g} days)",
              f"{would}deleted: {len(done.deleted)} builds, {len(done.files)} files, {done.bytes:,} bytes"]  # fmt: skip
    return done.to_json(), lines, 0


def run_check(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """Whether the query's result may vary: by its text; `--twice` and `--locality` by building. Exit code 5 if it did."""
    from cumin.planning import make_plan
    from cumin.rebuild import check_locality, check_twice

    recipe, _ = _recipe(arguments)
    plan = make_plan(recipe)
    passed = plan.passed
    data: dict[str, Any] = {"build_id": plan.build_id, "passed": passed}
    lines = ["nothing in the query may vary" if not passed else f"let pass by {recipe.determinism.mode}:", *passed]
    code = 0
    if arguments.twice:
        first, second = check_twice(recipe, tell)
        data["twice"] = [first, second]
        code = 0 if first == second else 5
        lines.append(
            f"built twice: {'the same content ' + first if first == second else f'{first} and {second}: it varies'}"
        )
    if arguments.locality:
        data["locality"] = check_locality(plan, tell)
        lines.append(f"{data['locality']} partitions depend on their look-back only")
    return data, lines, code


def run_doctor(arguments: argparse.Namespace, tell: Callable[[str], None]) -> Answer:
    """What the store's file system can do, tried there; exit code 6 if something it needs is missing."""
    from cumin.verify import doctor

    store = _store(arguments)
    found = doctor(store)
    data = [{"what": what, "well": well, "seen": seen} for what, well, seen in found]
    lines = [f"{'well' if well else 'BAD '}  {what}: {seen}" for what, well, seen in found]
    return data, [store.place.url, *lines], 0 if all(well for _, well, _ in found) else 6


# -- arguments ------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print JSON")
    common.add_argument("--store", help="path or URL of the store (else CUMIN_STORE, else .cumin)")
    common.add_argument(
        "--storage-option", action="append", default=[], metavar="NAME=VALUE", help="for a store on S3 or HDFS"
    )
    main_parser = argparse.ArgumentParser(prog="cumin", description="Reproducible dataset builds.")
    commands = main_parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[..., Answer], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, parents=[common], help=text, description=text)
        made.set_defaults(run=run)
        return made

    for name, run, text in (
        ("plan", run_plan, "what would run, and field by field why"),
        ("build", run_build, "build a dataset, or find it"),
        ("check", run_check, "whether the query's result may vary"),
    ):
        made = command(name, run, text)
        made.add_argument("file", help="the dataset file (YAML)")
        made.add_argument("-p", "--param", action="append", default=[], metavar="NAME=VALUE", help="replace a parameter")
        if name == "check":
            made.add_argument("--twice", action="store_true", help="build twice with different threads and compare")
            made.add_argument("--locality", action="store_true", help="build every partition alone and compare")
        else:
            made.add_argument("--partitions", metavar="FIRST..LAST", help="limit an incremental build to these")
    command("show", run_show, "one build: ids, inputs, columns, query").add_argument("build")
    command("log", run_log, "the versions of a name, newest first").add_argument("name", nargs="?")
    for name, run, text in (
        ("why", run_why, "why two builds have different ids"),
        ("diff", run_diff, "how two datasets differ"),
    ):
        made = command(name, run, text)
        made.add_argument("a")
        made.add_argument("b")
    made.add_argument("--rows", action="store_true", help="match rows by --key")
    made.add_argument("--key", action="append", default=[], metavar="COLUMN[,COLUMN]")
    made.add_argument("--limit", type=int, default=10, help="rows to show of each kind")
    _more_commands(command)
    return main_parser


def _more_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    made = command("lineage", run_lineage, "what a dataset was made from, and what from it")
    made.add_argument("build", nargs="?")
    made.add_argument("--up", action="store_true", help="only what it was made from")
    made.add_argument("--down", action="store_true", help="only what was made from it")
    made.add_argument("--openlineage", action="store_true", help="an OpenLineage event")
    made.add_argument("--svg", metavar="FILE", help="write a drawing")
    made.add_argument("--mlflow", metavar="RUN", help="start from an MLflow run")
    made.add_argument("--tracking-uri", help="the MLflow server (else MLflow's own default)")
    made = command("rebuild", run_rebuild, "build again from the manifest and compare")
    made.add_argument("build", help="a build, or a manifest's file (.json)")
    made.add_argument("--into", metavar="STORE", help="build into another store")
    made = command("verify", run_verify, "whether stored data is what it was")
    made.add_argument("build", nargs="?", help="one build (else all)")
    level = made.add_mutually_exclusive_group()
    level.add_argument("--bytes", action="store_true", help="hash every file")
    level.add_argument("--rows", action="store_true", help="read every row")
    level.add_argument("--rebuild", action="store_true", help="run the query again")
    made = command("pin", run_pin, "keep a build from gc")
    made.add_argument("build")
    made.add_argument("--label", help="also name it NAME@LABEL")
    made.add_argument("--reason", default="")
    command("unpin", run_unpin, "take a pin away").add_argument(
        "pin", help="NAME@LABEL, or a build that was pinned without a label"
    )
    made = command("gc", run_gc, "delete what no name, pin or MLflow run keeps")
    made.add_argument("--dry-run", action="store_true", help="say what would be deleted")
    made.add_argument("--grace-days", type=float, metavar="DAYS", help="between tombstone and deletion (else 7)")
    made.add_argument("--keep", type=int, help="keep only so many newest versions of each name")
    command("doctor", run_doctor, "what the store's file system can do")


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code (2 bad input, 3 may vary, 4 input moved, 5 varied, 6 store, 7 corrupt)."""
    arguments = parser().parse_args(argv)
    if argv is None:  # what is imported stays: to look for cycles in it takes a tenth of a plan's time
        gc.set_threshold(100_000, 20, 20)
    try:
        with _progress(arguments.json) as tell:
            answer: Answer = arguments.run(arguments, tell)
        data, lines, code = answer
    except CuminError as error:
        if arguments.json:
            print(json.dumps({"error": type(error).__name__, "message": str(error)}, ensure_ascii=False))
        else:
            print(f"cumin: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a disk or a right that failed where the store was read or written
        print(json.dumps({"error": "StoreError", "message": str(error)}) if arguments.json else f"cumin: {error}",
              file=sys.stdout if arguments.json else sys.stderr)  # fmt: skip
        return StoreError.exit_code
    print(json.dumps(data, ensure_ascii=False, indent=2, default=str) if arguments.json else "\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
