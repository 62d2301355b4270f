"""swimmy's process in each Pod, and the ranks it starts. Runs inside the user's image; nothing here talks to Kubernetes.

``python -m swimmy.agent`` is process 1 of the Pod's container. The agent of index 0 also leads the run (``leader.py``): it
tells the others what to start and gathers what they report, so that a client needs one connection whatever the number of
Pods.
"""
