"""A real Kafka broker for tests: one node (KRaft), from Maven Central, on free ports, gone when the tests are.

    with KafkaServer() as kafka:
        kafka.address            # "127.0.0.1:41234"
        kafka.kill(); kafka.restart()

State lies in a temporary folder; the broker is a process group of its own, which is killed whole.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from pathlib import Path

VERSION = "4.1.1"
INSTALL = "apt-get install openjdk-17-jre-headless maven"
START_SECONDS = 120.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version><dependencies>{}</dependencies></project>"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"

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
log.segment.delete.delay.ms=0
"""


def missing() -> str | None:
    """What this machine lacks to run the broker, with the line that installs it."""
    lacking = [program for program in ("java", "mvn") if shutil.which(program) is None]
    return f"{' and '.join(lacking)} missing: {INSTALL}" if lacking else None


def jars() -> Path:
    """The folder of the broker's jars (54 MB), fetched once by Maven into $GHEE_CACHE, else ~/.cache/ghee-suite."""
    cache = Path(os.environ.get("GHEE_CACHE") or Path.home() / ".cache" / "ghee-suite")
    target = cache / f"kafka-{VERSION}"
    if target.exists():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    wanted = [("org.apache.kafka", "kafka_2.13", VERSION), ("org.apache.kafka", "kafka-tools", VERSION)]
    wanted.append(("org.slf4j", "slf4j-nop", "1.7.36"))
    with tempfile.TemporaryDirectory(prefix="kafka-jars-", dir=cache) as name:
        folder = Path(name)
        (folder / "pom.xml").write_text(_POM.format("".join(_DEPENDENCY.format(*one) for one in wanted)))
        command = ["mvn", "-q", "-B", "dependency:copy-dependencies", f"-DoutputDirectory={folder / 'jars'}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"Maven could not fetch Kafka:\n{done.stdout[-3000:]}")
        # Beside, then renamed: a download that is cut off leaves nothing that looks whole.
        try:
            (folder / "jars").rename(target)
        except OSError:
            if not target.exists():  # another session was first
                raise
    return target


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class KafkaServer:
    """One broker. `address` is open to anybody on this host, `sasl_address` asks for user "ghee", password "secret"."""

    def __init__(self) -> None:
        self._port, self._sasl, self._controller = free_port(), free_port(), free_port()
        self._state: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"127.0.0.1:{self._port}"
        self.sasl_address = f"127.0.0.1:{self._sasl}"

    def __enter__(self) -> KafkaServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Format the state and start; returns when the broker answers."""
        self._state = Path(tempfile.mkdtemp(prefix="kafka-state-"))
        text = _PROPERTIES.format(port=self._port, sasl=self._sasl, controller=self._controller, state=self._state)
        (self._state / "server.properties").write_text(text)
        self.tool("kafka.tools.StorageTool", "format", "-t", uuid.uuid4().hex[:22], "-c", self._settings)
        self._launch()

    @property
    def _settings(self) -> str:
        return str(self._state / "server.properties") if self._state else ""

    def _launch(self) -> None:
        assert self._state is not None
        with (self._state / "broker.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*_JAVA, "-Xmx512m", "-cp", f"{jars()}/*", "kafka.Kafka", self._settings],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the broker did not start:\n{self.log()}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False

    def log(self) -> str:
        """The end of what the broker has printed."""
        return (self._state / "broker.txt").read_text(errors="replace")[-4000:] if self._state else ""

    def kill(self) -> None:
        """`kill -9`, as a crash; the state stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again with the same state and address."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        self._launch()

    def pause(self) -> None:
        """The broker is there and answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """The end of `pause`."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and remove its state."""
        self._end(signal.SIGKILL)
        if self._state is not None:
            shutil.rmtree(self._state, ignore_errors=True)
            self._state = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._signal(number)
            self._process.wait()
            self._process = None

    def tool(self, main: str, *arguments: str, stdin: str | None = None, seconds: float = 120) -> str:
        """Run one of Kafka's own programs (a Java class); returns what it printed."""
        done = subprocess.run(
            [*_JAVA, "-Xmx256m", "-cp", f"{jars()}/*", main, *arguments],
            input=stdin, capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{main} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout


_JAVA = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
