"""Reading and writing: sources that are cut into splits, sinks that appear whole or not at all.

Here live storage, file formats, schemas and batches as files know them. No ranks, sockets or processes: what reads a
split where, and in which order batches arrive, is the business of the rest of ghee. The filesystems are pyarrow's
(and fsspec's, through pyarrow); formats are pyarrow's too.
"""
