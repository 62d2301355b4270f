"""Stores: HDFS, S3 and what fsspec opens, each as a pyarrow filesystem; and how long ghee waits for one that is away.

Here lives what differs from store to store. Sources and sinks above know a filesystem and nothing of whose it is.
"""
