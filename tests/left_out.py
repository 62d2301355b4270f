"""Say which real systems the everyday `tox` has left out, the command for each, and what this machine lacks for it."""

from __future__ import annotations

import os
import shutil

NEEDS = {
    "java": "java (apt-get install openjdk-17-jre-headless)",
    "mvn": "mvn (apt-get install maven)",
    "go": "go 1.25 or newer (https://go.dev/doc/install)",
    "ip": "ip (apt-get install iproute2)",
    "etcd": "etcd (apt-get install etcd-server)",
    "containerd": "containerd (apt-get install containerd runc containernetworking-plugins)",
    "sshd": "sshd (apt-get install openssh-server)",
    "root": "root: run as root",
}
CLUSTER = ("go", "etcd", "containerd", "ip", "root")
SYSTEMS = {
    "Kafka": ("tox run -m kafka", ("java", "mvn")),
    "HDFS": ("tox run -m hdfs", ("java", "mvn", "go")),
    "S3": ("tox run -m s3", ("java", "mvn", "go")),
    "Spark": ("tox run -m spark", ("java", "mvn", "go")),
    "Kubernetes, Open MPI": ("tox run -m kubernetes", CLUSTER),
    "all of them": ("tox run -m real", tuple(NEEDS)),
}


def is_here(need: str) -> bool:
    """Whether the machine has it."""
    return os.geteuid() == 0 if need == "root" else shutil.which(need) is not None


def main() -> None:
    """Print the table."""
    print("Left out, since they need more than Python: the tests on real systems. To run them:")
    for system, (command, needs) in SYSTEMS.items():
        missing = [NEEDS[need] for need in needs if not is_here(need)]
        print(f"  {system:<22}{command:<24}{'missing here: ' + ', '.join(missing) if missing else 'can run here'}")


if __name__ == "__main__":
    main()
