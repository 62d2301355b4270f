"""What happens in the driver's process: the plan, the journal, feeding and scaling stages, going on after an end.

No user function runs here but those of sources and sinks that stay in the caller's process.
"""
