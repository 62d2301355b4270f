"""Sinks: a folder of files that appears whole or not at all, a list, a callback. No sources and no ranks here."""
