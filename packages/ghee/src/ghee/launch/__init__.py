"""Starts the ranks of a run: as threads (`inline.py`) or as MPI worlds of processes on this machine (`local.py`).

A new place to run is a new file with a class that keeps the contract of `contract.py`. A launcher starts, watches and
stops; it decides nothing about batches.
"""
