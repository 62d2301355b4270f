"""Real servers for cumin's tests: S3 (versitygw, built with Go) and HDFS (from Maven). State in a temporary folder;
each is killed with its process group. A missing tool is a visible skip, and a failure where CI is set.

`python tests/cumin/servers.py` fetches and builds them before the tests; what this machine has no tools for is passed over.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
HADOOP = "3.4.2"


def need(tool: str, install: str) -> None:
    """Skip, or under CI fail, if `tool` is not on the path."""
    if shutil.which(tool) is None:
        message = f"{tool} is not installed: {install}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


def cache() -> Path:
    """Where built servers are kept between runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cumin-test-servers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    """Wait until something listens; fail with the log if the server ends or takes too long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)  # a server tells nobody that it listens
    pytest.fail(f"no server on port {port}:\n{log.read_text()[-3000:]}")


@contextmanager
def running(command: list[str], folder: Path, name: str, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=out, start_new_session=True, env={**os.environ, **env}
        )
    try:
        yield process, log
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def versitygw() -> Path:
    program = cache() / "versitygw"
    if not program.exists():
        subprocess.run(["go", "install", VERSITYGW], env={**os.environ, "GOBIN": str(cache())}, check=True, timeout=900)
    return program


@contextmanager
def s3(folder: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """A bucket on a real S3 server: its URL and fsspec's options."""
    need("go", "apt-get install golang")
    program = versitygw()
    (folder / "data/bucket").mkdir(parents=True)
    port = free_port()
    command = [str(program), "--port", f"127.0.0.1:{port}", "posix", str(folder / "data")]
    with running(command, folder, "versitygw", ROOT_ACCESS_KEY="tester", ROOT_SECRET_KEY="testing-secret") as (process, log):
        wait_port(port, process, log)
        options = {"key": "tester", "secret": "testing-secret", "endpoint_url": f"http://127.0.0.1:{port}",
                   "client_kwargs": {"region_name": "us-east-1"}}  # fmt: skip
        yield "s3://bucket", options


POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>t</groupId><artifactId>t</artifactId><version>1</version><dependencies>
{}</dependencies></project>"""


def hadoop_jars() -> Path:
    need("mvn", "apt-get install maven")
    need("java", "apt-get install openjdk-17-jre-headless")
    folder = cache() / f"hadoop-{HADOOP}"
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        names = ("hadoop-hdfs", "hadoop-hdfs-client", "hadoop-common")
        group = "<groupId>org.apache.hadoop</groupId>"
        each = f"<dependency>{group}<artifactId>{{}}</artifactId><version>{{}}</version></dependency>"
        (folder / "pom.xml").write_text(POM.format("\n".join(each.format(name, HADOOP) for name in names)))
        subprocess.run(["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=lib"], cwd=folder, check=True,
                       timeout=900)  # fmt: skip
        (folder / "done").touch()
    return folder / "lib"


@contextmanager
def hdfs(folder: Path) -> Iterator[str]:
    """A NameNode and a DataNode; the URL of the root."""
    jars = hadoop_jars()
    conf = folder / "conf"
    for name in ("hdfs", "datanode"):
        (conf / "webapps" / name).mkdir(parents=True)
    name_port, web, data, data_http, data_ipc = (free_port() for _ in range(5))
    values = {
        "fs.defaultFS": f"hdfs://127.0.0.1:{name_port}",
        "dfs.replication": "1",
        "dfs.namenode.name.dir": f"file://{folder}/name",
        "dfs.datanode.data.dir": f"file://{folder}/blocks",
        "dfs.namenode.http-address": f"127.0.0.1:{web}",
        "dfs.datanode.address": f"127.0.0.1:{data}",
        "dfs.datanode.http.address": f"127.0.0.1:{data_http}",
        "dfs.datanode.ipc.address": f"127.0.0.1:{data_ipc}",
        "dfs.permissions.enabled": "false",
        "dfs.namenode.fs-limits.min-block-size": "1048576",
        "dfs.blocksize": "1048576",
    }
    text = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in values.items())
    for name in ("core-site.xml", "hdfs-site.xml"):
        (conf / name).write_text(f"<configuration>{text}</configuration>")
    (conf / "log4j.properties").write_text(
        "log4j.rootLogger=WARN,c\nlog4j.appender.c=org.apache.log4j.ConsoleAppender\n"
        "log4j.appender.c.layout=org.apache.log4j.SimpleLayout\n"
    )
    java = ["java", "-Xmx256m", "--add-opens", "java.base/java.lang=ALL-UNNAMED", "-cp", f"{conf}:{jars}/*"]
    name_node = [*java, "org.apache.hadoop.hdfs.server.namenode.NameNode"]
    subprocess.run([*name_node, "-format", "-nonInteractive"], cwd=folder, check=True, capture_output=True, timeout=120)
    with running(name_node, folder, "namenode") as (process, log):
        wait_port(name_port, process, log)
        with running([*java, "org.apache.hadoop.hdfs.server.datanode.DataNode"], folder, "datanode") as (second, second_log):
            wait_port(data, second, second_log)
            wait_live(web, second_log)
            yield f"hdfs://127.0.0.1:{name_port}"


def wait_live(port: int, log: Path) -> None:
    """Wait until the NameNode counts a live DataNode."""
    url = f"http://127.0.0.1:{port}/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState"
    end = time.monotonic() + 90
    while time.monotonic() < end:
        with urllib.request.urlopen(url, timeout=10) as answer:
            if b'"NumLiveDataNodes" : 1' in answer.read():
                return
        time.sleep(0.1)  # the name node has to be asked
    pytest.fail(f"no DataNode came up:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    if shutil.which("go"):
        versitygw()
    if shutil.which("mvn") and shutil.which("java"):
        hadoop_jars()
