"""What a query may read: files, Hive-partitioned tables, Delta, Iceberg, other cumin datasets.

An input is data: where the table is and how its state is to be named. `open()` looks at it and gives a `Table`, which
lists its partitions, names the state of those that a query can read, and hands the engine the exact files.
"""

from cumin.inputs.base import Input, Relation, Table

__all__ = ["Input", "Relation", "Table"]
