"""A real S3 server (versitygw, built with Go) over a folder, with the bucket `bucket`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from servers.contract import GO, Program, Server, free_port, go_install, listens

VERSION = "v1.8.0"
ACCESS_KEY, SECRET_KEY, REGION = "tester", "testing-secret", "us-east-1"


class S3(Server):
    """`address` is the endpoint; `env` names it and the keys as clients of S3 are used to."""

    name = "s3"
    tools = (GO,)

    def __init__(self, state: Path) -> None:
        super().__init__(state)
        self._port = free_port()
        self._programs: list[Program] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def programs(self) -> Sequence[Program]:
        return self._programs

    @property
    def env(self) -> dict[str, str]:
        """For clients."""
        return {
            "AWS_ENDPOINT_URL": self.address, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

    @classmethod
    def fetch(cls) -> None:
        cls._program()

    @staticmethod
    def _program() -> Path:
        return go_install(f"versitygw-{VERSION}", f"github.com/versity/versitygw/cmd/versitygw@{VERSION}") / "versitygw"

    def start(self) -> None:
        (self.state / "data" / "bucket").mkdir(parents=True)
        (self.state / "iam").mkdir()
        command = [str(self._program()), "--port", f"127.0.0.1:{self._port}", "--iam-dir", str(self.state / "iam")]
        command += ["posix", str(self.state / "data")]
        keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        self._programs = [Program("versitygw", command, self.state, lambda: listens(self._port), keys)]
        self.restart()
