"""A real HDFS: a name node and data nodes of Hadoop, from Maven Central."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from servers.contract import JAVA, MAVEN, Program, Server, free_port, listens, maven, run

VERSION = "3.4.2"
BLOCK = 1 << 20
"""Bytes: small, so that a file of a test has many blocks."""

_LOG = """log4j.rootLogger=WARN,c
log4j.appender.c=org.apache.log4j.ConsoleAppender
log4j.appender.c.layout=org.apache.log4j.SimpleLayout
"""


class Hdfs(Server):
    """`address` is "127.0.0.1:PORT" of the name node, `web` the same of WebHDFS; `env` lets clients find its settings.

    Permissions are checked; the super user is the user of the tests.
    """

    name = "hdfs"
    tools = (JAVA, MAVEN)

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._port, self._web_port, self._data, data_http, data_ipc = (free_port() for _ in range(5))
        self._settings = {
            "fs.defaultFS": f"hdfs://127.0.0.1:{self._port}",
            "dfs.replication": "1",
            "dfs.namenode.name.dir": f"file://{state}/name",
            "dfs.datanode.data.dir": f"file://{state}/blocks",
            "dfs.namenode.rpc-address": f"127.0.0.1:{self._port}",
            "dfs.namenode.http-address": f"127.0.0.1:{self._web_port}",
            "dfs.datanode.address": f"127.0.0.1:{self._data}",
            "dfs.datanode.http.address": f"127.0.0.1:{data_http}",
            "dfs.datanode.ipc.address": f"127.0.0.1:{data_ipc}",
            "dfs.datanode.hostname": "127.0.0.1",
            "dfs.namenode.fs-limits.min-block-size": str(BLOCK),
            "dfs.blocksize": str(BLOCK),
            # A data node that comes back is used at once; a name node that comes back waits for no further blocks.
            "dfs.namenode.safemode.extension": "0",
            "dfs.heartbeat.interval": "1",
        }
        self._programs: list[Program] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def web(self) -> str:
        """WebHDFS: host and port."""
        return f"127.0.0.1:{self._web_port}"

    @property
    def env(self) -> dict[str, str]:
        """For clients: the folder of the settings."""
        return {"HADOOP_CONF_DIR": str(self._conf)}

    @property
    def programs(self) -> Sequence[Program]:
        return self._programs

    @property
    def name_node(self) -> Program:
        return self._programs[0]

    @property
    def data_node(self) -> Program:
        return self._programs[1]

    @property
    def _conf(self) -> Path:
        return self.state / "conf"

    @classmethod
    def fetch(cls) -> None:
        cls._jars()

    @staticmethod
    def _jars() -> Path:
        names = ("hadoop-hdfs", "hadoop-hdfs-client", "hadoop-common")
        return maven(f"hadoop-{VERSION}", *(f"org.apache.hadoop:{name}:{VERSION}" for name in names))

    def start(self) -> None:
        self._write_settings()
        name_node = [*self._java, "org.apache.hadoop.hdfs.server.namenode.NameNode"]
        run([*name_node, "-format", "-nonInteractive"], self.state, seconds=120)
        data_node = [*self._java, "org.apache.hadoop.hdfs.server.datanode.DataNode"]
        self._programs = [
            Program("namenode", name_node, self.state, lambda: listens(self._port) and self._name_system() is not None),
            Program("datanode", data_node, self.state, self._serves),
        ]
        self.restart()

    def _write_settings(self) -> None:
        for name in ("hdfs", "datanode"):
            (self._conf / "webapps" / name).mkdir(parents=True)  # the jar lacks them, and the servers die without
        for name in ("core-site.xml", "hdfs-site.xml"):
            (self._conf / name).write_text(settings(self._settings))
        (self._conf / "log4j.properties").write_text(_LOG)

    def admin(self, *arguments: str) -> str:
        """Hadoop's own `hdfs dfsadmin`, as the super user; what it printed."""
        return run([*self._java, "org.apache.hadoop.hdfs.tools.DFSAdmin", *arguments], self.state, seconds=120)

    @property
    def _java(self) -> list[str]:
        return ["java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "--add-opens",
                "java.base/java.lang=ALL-UNNAMED", "-cp", f"{self._conf}:{self._jars()}/*"]  # fmt: skip

    def _serves(self) -> bool:
        state = self._name_system()
        return (
            state is not None
            and state["NumLiveDataNodes"] == 1
            and state["FSState"] == "Operational"
            and listens(self._data)
        )

    def _name_system(self) -> dict[str, object] | None:
        url = f"http://{self.web}/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                beans = json.load(answer)["beans"]
        except OSError:
            return None
        return beans[0] if beans else None


class HaHdfs(Hdfs):
    """Two name nodes of the name service `address`, with a folder for the edits that both see; the first is active."""

    name = "hdfs-ha"

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        ports = {"nn1": (self._port, self._web_port), "nn2": (free_port(), free_port())}
        for name in ("dfs.namenode.name.dir", "dfs.namenode.rpc-address", "dfs.namenode.http-address"):
            del self._settings[name]
        for node, (port, web) in ports.items():
            self._settings |= {
                f"dfs.namenode.rpc-address.cluster.{node}": f"127.0.0.1:{port}",
                f"dfs.namenode.http-address.cluster.{node}": f"127.0.0.1:{web}",
                f"dfs.namenode.name.dir.cluster.{node}": f"file://{state}/{node}",
            }
        self._settings |= {
            "fs.defaultFS": "hdfs://cluster",
            "dfs.nameservices": "cluster",
            "dfs.ha.namenodes.cluster": "nn1,nn2",
            "dfs.client.failover.proxy.provider.cluster":
                "org.apache.hadoop.hdfs.server.namenode.ha.ConfiguredFailoverProxyProvider",
            "dfs.ha.fencing.methods": "shell(/bin/true)",
            "dfs.namenode.shared.edits.dir": f"file://{state}/shared",
            "dfs.ha.tail-edits.period": "1",
        }  # fmt: skip
        self._ports = ports

    @property
    def address(self) -> str:
        return "cluster"

    def start(self) -> None:
        self._write_settings()
        nodes = {
            node: [*self._java, "org.apache.hadoop.hdfs.server.namenode.NameNode", f"-Ddfs.ha.namenode.id={node}"]
            for node in self._ports
        }
        run([*nodes["nn1"], "-format", "-nonInteractive"], self.state, seconds=120)
        shutil.copytree(self.state / "nn1", self.state / "nn2")  # the second begins with what the first has
        self._programs = [
            Program(node, command, self.state, lambda port=self._ports[node][0]: listens(port))  # type: ignore[misc]
            for node, command in nodes.items()
        ]
        for program in self._programs:
            program.start()
        self.make_active("nn1")
        data_node = [*self._java, "org.apache.hadoop.hdfs.server.datanode.DataNode"]
        self._programs.append(Program("datanode", data_node, self.state, self._serves))
        self._programs[-1].start()

    def make_active(self, node: str) -> None:
        """The other is down, or has never been active."""
        tool = [*self._java, "org.apache.hadoop.hdfs.tools.DFSHAAdmin", "-Dipc.client.connect.max.retries=0"]
        run([*tool, "-transitionToActive", "--forceactive", node], self.state, seconds=120)

    def fail_over(self) -> None:
        """The first name node dies, and the second takes its place."""
        self.programs[0].kill()
        self.make_active("nn2")


def settings(values: Mapping[str, str]) -> str:
    """As a file of Hadoop's settings."""
    each = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in values.items())
    return f"<configuration>{each}</configuration>"
