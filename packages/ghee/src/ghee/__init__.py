"""Streaming distributed processing: the public names of ghee, re-exported; nothing else lives here."""
