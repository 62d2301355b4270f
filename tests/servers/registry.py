"""A real schema registry (Apicurio, which speaks Confluent's protocol), in memory, from Maven Central."""

from __future__ import annotations

import tarfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from servers.contract import JAVA, MAVEN, Program, Server, building, cache, free_port, run

VERSION = "2.6.13.Final"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"


class Registry(Server):
    """`address` is what clients of Confluent's registry are given."""

    name = "registry"
    tools = (JAVA, MAVEN)

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._port = free_port()
        self._programs: list[Program] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}/apis/ccompat/v7"

    @property
    def programs(self) -> Sequence[Program]:
        return self._programs

    @classmethod
    def fetch(cls) -> None:
        cls._folder()

    @staticmethod
    def _folder() -> Path:
        target = cache() / f"apicurio-{VERSION}"
        if not target.exists():
            with building(target) as folder:
                artifact = f"io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
                run(["mvn", "-q", "-B", _COPY, f"-Dartifact={artifact}", f"-DoutputDirectory={folder}"], folder)
                packed = folder / f"apicurio-registry-app-{VERSION}-all.tar.gz"
                with tarfile.open(packed) as archive:
                    archive.extractall(folder, filter="data")
                packed.unlink()
        return target

    def start(self) -> None:
        options = [f"-Dquarkus.http.port={self._port}", "-Dquarkus.http.host=127.0.0.1", "-Xmx256m", "-XX:+UseSerialGC"]
        command = [
            "java",
            *options,
            "-XX:TieredStopAtLevel=1",
            "-jar",
            str(self._folder() / f"apicurio-registry-app-{VERSION}-runner.jar"),
        ]
        self._programs = [Program("registry", command, self.state, self._answers)]
        self.restart()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/subjects", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
