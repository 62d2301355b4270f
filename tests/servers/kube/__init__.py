"""A real Kubernetes cluster for tests: etcd, apiserver, controller-manager, scheduler, kubelet and containerd on this
machine.

Everything runs in network, mount and process namespaces of its own: the machine's containerd, CNI configuration,
kubelet folder and ports are never seen, and killing one process (the namespace's first) ends every other, containers too.
"""

from servers.kube.cluster import Cluster, Missing, missing_tools

__all__ = ["Cluster", "Missing", "missing_tools"]
