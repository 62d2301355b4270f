"""What a message says where an optional library is missing: the libraries themselves.

Never `cumin` with an extra: on PyPI that name is another project's, with the same import name, and would take its place.
"""

_LIBRARIES = {
    "delta": ("deltalake>=1.0",),
    "iceberg": ("pyiceberg[sql-sqlite]>=0.10",),
    "spark": ("pandas>=2.2", "pyspark>=4.0"),
    "s3": ("s3fs>=2025.3",),
    "hdfs": ("hdfs-native>=0.12",),
    "hydra": ("hydra-core>=1.3",),
    "mlflow": ("mlflow-skinny>=3.1",),
}
"""By extra, as pyproject.toml has them (a test compares the two)."""


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of cumin is made of."""
    return "python -m pip install " + " ".join(f'"{library}"' for library in _LIBRARIES[extra])
