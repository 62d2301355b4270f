"""A real Kafka broker: one node (KRaft), from Maven Central."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from servers.contract import JAVA, MAVEN, Program, Server, free_port, listens, maven

VERSION = "4.1.1"
_RUN = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]


class Kafka(Server):
    """`address` is open to anybody on this host, `sasl_address` asks for user "ghee", password "secret"."""

    name = "kafka"
    tools = (JAVA, MAVEN)

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._port, self._sasl, self._controller = free_port(), free_port(), free_port()
        self.sasl_address = f"127.0.0.1:{self._sasl}"
        self._programs: list[Program] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def programs(self) -> Sequence[Program]:
        return self._programs

    @classmethod
    def fetch(cls) -> None:
        cls._class_path()

    @staticmethod
    def _class_path() -> str:
        kafka = "org.apache.kafka"
        wanted = (f"{kafka}:kafka_2.13:{VERSION}", f"{kafka}:kafka-tools:{VERSION}", "org.slf4j:slf4j-nop:1.7.36")
        return f"{maven(f'kafka-{VERSION}', *wanted)}/*"

    def start(self) -> None:
        settings = self.state / "server.properties"
        text = _PROPERTIES.format(port=self._port, sasl=self._sasl, controller=self._controller, state=self.state)
        settings.write_text(text)
        self.tool("kafka.tools.StorageTool", "format", "-t", uuid.uuid4().hex[:22], "-c", str(settings))
        command = [*_RUN, "-Xmx512m", "-cp", self._class_path(), "kafka.Kafka", str(settings)]
        self._programs = [Program("broker", command, self.state, lambda: listens(self._port))]
        self.restart()

    def tool(self, main: str, *arguments: str, stdin: str | None = None, seconds: float = 100) -> str:
        """Run one of Kafka's own programs (a Java class); returns what it printed."""
        done = subprocess.run(
            [*_RUN, "-Xmx256m", "-cp", self._class_path(), main, *arguments],
            input=stdin, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{main} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout


_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
required user_ghee="secret";
log.dirs={state}/log
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=2
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
log.retention.check.interval.ms=500
log.retention.ms=-1
log.segment.delete.delay.ms=0
# A broker that was killed may come back when its last registration is over.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
"""
