"""A Pod as the API server describes it, with names for what is read. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from swimmy.manifests import CONTAINER

Object = dict[str, Any]


@dataclass
class Seen:
    """A Pod and since when it has shown each trouble."""

    pod: Object
    gone: bool = False
    since: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def index(self) -> int:
        notes = self.pod["metadata"].get("annotations", {})
        return int(notes.get("batch.kubernetes.io/job-completion-index", -1))

    @property
    def phase(self) -> str:
        return str(self.pod.get("status", {}).get("phase", "Pending"))

    @property
    def address(self) -> str | None:
        found: str | None = self.pod.get("status", {}).get("podIP")
        return found

    @property
    def node(self) -> str | None:
        found: str | None = self.pod["spec"].get("nodeName")
        return found

    @property
    def container(self) -> Object:
        statuses = self.pod.get("status", {}).get("containerStatuses", [])
        return next((each for each in statuses if each["name"] == CONTAINER), {})

    @property
    def running(self) -> bool:
        return "running" in self.container.get("state", {}) and not self.leaving

    @property
    def leaving(self) -> bool:
        return self.gone or "deletionTimestamp" in self.pod["metadata"]

    def condition(self, kind: str) -> Object:
        conditions = self.pod.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})
