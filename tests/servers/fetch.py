"""Fetch and build the servers before the tests: python tests/servers/fetch.py. What cannot run here is passed over."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from servers.hdfs import Hdfs
from servers.kafka import Kafka
from servers.registry import Registry
from servers.s3 import S3

if __name__ == "__main__":
    for kind in (Hdfs, Kafka, Registry, S3):
        if not kind.missing():
            kind.fetch()
