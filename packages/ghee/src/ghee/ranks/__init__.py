"""What happens in a rank: the task, the batches that its function is given, its checkpoints.

Nothing of the driver, and no process is started here.
"""
