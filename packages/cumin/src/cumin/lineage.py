"""Where a dataset comes from and what was made from it: as a graph, as OpenLineage, as a drawing."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape

from cumin.dataset import Dataset, load
from cumin.errors import NotFoundError
from cumin.schemas import read_schema
from cumin.store import Store

PRODUCER = "https://pypi.org/project/cumin/"
_SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"


@dataclass
class Vertex:
    """A build, an input table, or something outside (an MLflow run, a model). `level`: 0 for what was asked about,
    more to the left, less to the right."""

    key: str
    kind: str
    title: str
    notes: list[str]
    level: int = 0


@dataclass
class Graph:
    """Vertices, and edges from what was read to what was made."""

    vertices: dict[str, Vertex] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)

    def add(self, vertex: Vertex) -> Vertex:
        """Add a vertex, or find it; it moves to the further level."""
        known = self.vertices.setdefault(vertex.key, vertex)
        known.level = vertex.level if abs(vertex.level) > abs(known.level) else known.level
        return known

    def connect(self, source: str, target: str) -> None:
        """Add an edge, once."""
        if (source, target) not in self.edges:
            self.edges.append((source, target))

    def to_json(self) -> dict[str, Any]:
        """Vertices and edges as `cumin lineage --json` prints them."""
        vertices = [{"key": v.key, "kind": v.kind, "title": v.title, "notes": v.notes} for v in self.vertices.values()]
        return {"vertices": vertices, "edges": [list(edge) for edge in self.edges]}

    def lines(self) -> list[str]:
        """The graph as indented text, what was made first."""
        made_from: dict[str, list[str]] = {}
        for source, target in self.edges:
            made_from.setdefault(target, []).append(source)
        read = {source for source, _ in self.edges}
        result: list[str] = []

        def show(key: str, depth: int) -> None:
            vertex = self.vertices[key]
            notes = f"  ({'; '.join(vertex.notes)})" if vertex.notes else ""
            result.append(f"{'    ' * depth}{vertex.title}{notes}")
            for source in made_from.get(key, []):
                show(source, depth + 1)

        for key in self.vertices:
            if key not in read:
                show(key, 0)
        return result


def graph(store: Store, spec: str, *, up: bool = True, down: bool = True) -> Graph:
    """What the build was made from, all the way, and what in this store was made from it."""
    result = Graph()
    dataset = load(spec, store)
    _up(result, dataset, 0, follow=up)
    if down:
        _down(result, store, dataset.build_id, -1)
    return result


def _vertex(dataset: Dataset, level: int) -> Vertex:
    version = f"@v{dataset.version}" if dataset.version else ""
    notes = [f"{dataset.rows:,} rows", dataset.build_id[:15], dataset.content_id[:15]]
    return Vertex(dataset.build_id, "build", f"{dataset.name}{version}", notes, level)


def _up(result: Graph, dataset: Dataset, level: int, *, follow: bool) -> None:
    result.add(_vertex(dataset, level))
    if not follow:
        return
    for each in dataset.manifest["inputs"]:
        if each["parents"]:
            for parent in each["parents"]:
                try:
                    _up(result, load(parent["build_id"], Store(parent["store"])), level + 1, follow=True)
                except NotFoundError:
                    result.add(Vertex(parent["build_id"], "gone", parent["name"], ["no longer in its store"], level + 1))
                result.connect(parent["build_id"], dataset.build_id)
            continue
        key = f"{each['kind']}:{each['root']}:{each['name']}"
        files = sum(part["files"] for part in each["partitions"].values())
        notes = [f"{each['kind']} by {each['strength']}", f"{len(each['partitions'])} partitions, {files} files"]
        result.add(Vertex(key, "input", each["name"], notes, level + 1))
        result.connect(key, dataset.build_id)


def _down(result: Graph, store: Store, build_id: str, level: int) -> None:
    for other in store.builds():
        entry = store.entry(other)
        manifest = store.manifest(entry["manifest"]) if entry else None
        if manifest is None:
            continue
        parents = {parent["build_id"] for each in manifest["inputs"] for parent in each["parents"]}
        if build_id in parents:
            result.add(_vertex(load(other, store), level))
            result.connect(build_id, other)
            _down(result, store, other, level - 1)


def openlineage(dataset: Dataset) -> dict[str, Any]:
    """The build as an OpenLineage RunEvent (spec 2-0-2): inputs, output, SQL, schema, versions."""
    manifest = dataset.manifest
    run = str(uuid.uuid5(uuid.NAMESPACE_URL, dataset.build_id))

    def facet(kind: str, version: str, **values: Any) -> dict[str, Any]:
        return {
            "_producer": PRODUCER,
            "_schemaURL": f"https://openlineage.io/spec/facets/{version}/{kind}.json#/$defs/{kind}",
            **values,
        }

    def columns(text: str) -> dict[str, Any]:
        fields = [{"name": each.name, "type": str(each.type)} for each in read_schema(text)]
        return facet("SchemaDatasetFacet", "1-2-0", fields=fields)

    inputs = [
        {
            **_named(each),
            "facets": {
                "schema": columns(each["schema"]),
                "version": facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=each["listing"]),
            },
        }
        for each in manifest["inputs"]
    ]
    output = {
        "namespace": dataset.store.place.url,
        "name": dataset.name,
        "facets": {
            "schema": columns(manifest["output"]["schema"]),
            "version": facet("DatasetVersionDatasetFacet", "1-0-1", datasetVersion=dataset.content_id),
        },
        "outputFacets": {
            "outputStatistics": facet(
                "OutputStatisticsOutputDatasetFacet", "1-0-2", rowCount=dataset.rows, size=manifest["output"]["bytes"]
            )
        },
    }
    return {
        "eventType": "COMPLETE",
        "eventTime": manifest["created"],
        "producer": PRODUCER,
        "schemaURL": _SPEC,
        "run": {"runId": run, "facets": {}},
        "job": {
            "namespace": "cumin",
            "name": dataset.name,
            "facets": {"sql": facet("SQLJobFacet", "1-1-0", query=manifest["recipe"]["text"], dialect=_dialect(manifest))},
        },
        "inputs": inputs,
        "outputs": [output],
    }


def _named(source: Mapping[str, Any]) -> dict[str, str]:
    """Namespace and name of an input by OpenLineage's naming: by its place, so that all who read it name it alike."""
    if source["parents"]:  # as the parent's own event names its output
        parent = source["parents"][0]
        return {"namespace": parent["store"], "name": parent["name"]}
    root = str(source["root"]).removeprefix("file://")
    scheme, separator, rest = root.partition("://")
    if separator:
        host, _, path = rest.partition("/")
        return {"namespace": f"{scheme}://{host}", "name": path or "/"}
    return {"namespace": "file", "name": root} if root.startswith("/") else {"namespace": root, "name": source["name"]}


def _dialect(manifest: dict[str, Any]) -> str:
    return str(manifest["recipe"]["form"]["dialect"])


_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _EDGE = 300, 64, 70, 22, 20
_TITLE, _NOTE = 31, 40  # characters that fit into a box, in the widest of the usual fonts
_FILL = {"build": "#e8f1fb", "input": "#eef7ea", "gone": "#fbe9e7", "run": "#fff6dd", "model": "#f4ecfb"}


def svg(drawn: Graph) -> str:
    """The graph as a drawing: inputs on the left, what was made from them to the right."""
    columns: dict[int, list[Vertex]] = {}
    for vertex in drawn.vertices.values():
        columns.setdefault(-vertex.level, []).append(vertex)
    order = sorted(columns)
    tall = max(len(column) for column in columns.values())
    width = 2 * _EDGE + len(order) * _BOX_WIDTH + (len(order) - 1) * _GAP_X
    height = 2 * _EDGE + tall * _BOX_HEIGHT + (tall - 1) * _GAP_Y
    places: dict[str, tuple[float, float]] = {}
    for index, level in enumerate(order):
        column = columns[level]
        own = len(column) * _BOX_HEIGHT + (len(column) - 1) * _GAP_Y
        for row, vertex in enumerate(column):
            top = (height - own) / 2 + row * (_BOX_HEIGHT + _GAP_Y)
            places[vertex.key] = (_EDGE + index * (_BOX_WIDTH + _GAP_X), top)
    pieces = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" font-family="sans-serif" font-size="11">',
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height:.0f}" fill="#ffffff"/>',
    ]
    for source, target in drawn.edges:
        pieces.append(_arrow(places[source], places[target]))
    pieces += [_box(vertex, places[vertex.key]) for vertex in drawn.vertices.values()]
    return "\n".join([*pieces, "</svg>"]) + "\n"


def _arrow(source: tuple[float, float], target: tuple[float, float]) -> str:
    x1, y1 = source[0] + _BOX_WIDTH, source[1] + _BOX_HEIGHT / 2
    x2, y2 = target[0], target[1] + _BOX_HEIGHT / 2
    bend = (x1 + x2) / 2
    return (f'<path d="M{x1:.0f},{y1:.0f} C{bend:.0f},{y1:.0f} {bend:.0f},{y2:.0f} {x2:.0f},{y2:.0f}" fill="none" '
            'stroke="#667" stroke-width="1.4" marker-end="url(#tip)"/>')  # fmt: skip


def _box(vertex: Vertex, place: tuple[float, float]) -> str:
    x, y = place
    fill = _FILL.get(vertex.kind, "#eeeeee")
    size = f'width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="6"'
    title = escape(_cut(vertex.title, _TITLE))
    whole = escape(" · ".join([vertex.title, *vertex.notes]))
    lines = [
        f'<rect x="{x:.0f}" y="{y:.0f}" {size} fill="{fill}" stroke="#99a"><title>{whole}</title></rect>',
        f'<text x="{x + 10:.0f}" y="{y + 19:.0f}" font-weight="bold" font-size="13">{title}</text>',
    ]
    notes = [", ".join(vertex.notes[:1]), ", ".join(vertex.notes[1:])]
    for row, note in enumerate(note for note in notes if note):
        lines.append(f'<text x="{x + 10:.0f}" y="{y + 37 + 15 * row:.0f}" fill="#445">{escape(_cut(note, _NOTE))}</text>')
    return "\n".join(lines)


def _cut(text: str, length: int) -> str:
    """`text` without its middle where it is too long: the version at the end stays."""
    return text if len(text) <= length else f"{text[: length - 9]}…{text[-8:]}"
