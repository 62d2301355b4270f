"""Fetch and build servers before the tests: python tests/servers/fetch.py [hdfs] [kafka] [registry] [s3], or all.

What cannot run here is passed over: its tests say what is missing.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from servers.hdfs import Hdfs
from servers.kafka import Kafka
from servers.registry import Registry
from servers.s3 import S3

KINDS = {"hdfs": Hdfs, "kafka": Kafka, "registry": Registry, "s3": S3}

if __name__ == "__main__":
    for name in sys.argv[1:] or KINDS:
        if not KINDS[name].missing():
            KINDS[name].fetch()
