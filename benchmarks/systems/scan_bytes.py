"""hdfs-native alone: the bytes of every file, in the way that its documentation calls the most efficient one."""

import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version

import hdfs_native
from scan import Scan, print_result

scan = Scan.from_arguments()


def read(path: str) -> int:
    """The bytes of a file."""
    reader = client.read(path)
    return sum(len(block) for block in reader.read_range_stream(0, len(reader)))


if __name__ == "__main__":
    client = hdfs_native.Client(f"hdfs://{scan.address}")
    files = scan.files() * scan.passes
    began = time.monotonic()
    with ThreadPoolExecutor(scan.workers) as pool:
        total = sum(pool.map(read, files))
    print_result(0, time.monotonic() - began, {"hdfs-native": version("hdfs-native")}, bytes=total)
