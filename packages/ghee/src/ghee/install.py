"""What a message says where an optional library is missing: the libraries themselves.

Never a package of ours: on PyPI `ghee` is somebody else's, and the name `swimmy` is anybody's to take.
"""

from __future__ import annotations

_LIBRARIES = {
    "torch": ("torch>=2.6",),
    "fsspec": ("fsspec>=2025.3",),
    "kafka": ("confluent-kafka>=2.8",),
    "kafka-registry": ("confluent-kafka[avro,protobuf,schemaregistry]>=2.8",),
    "hdfs": ("fsspec>=2025.3", "hdfs-native>=0.14"),
    "s3": ("boto3>=1.35",),
    "webhdfs": ("fsspec>=2025.3", "requests>=2.32"),
    "gcs": ("gcsfs>=2025.3",),
    "azure": ("adlfs>=2024.12",),
    "mpi": ("mpi4py>=4.1", "mpich>=5.0"),
}
"""By extra, as pyproject.toml has them (a test compares the two)."""


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of ghee is made of."""
    return "python -m pip install " + " ".join(f'"{library}"' for library in _LIBRARIES[extra])


def how_to_install_ours(*folders: str) -> str:
    """The command that installs packages of the repository that ghee is from, together so that they fit each other."""
    return f"python -m pip install {' '.join(f'./{folder}' for folder in folders)} (in a clone of ghee's repository)"
