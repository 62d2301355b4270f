"""The command ``swimmy``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from swimmy.errors import SwimmyError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swimmy", description="Functions and MPI programs on Kubernetes Pods.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--kubeconfig", help="path of the kubeconfig file (default: as kubectl finds it)")
        added.add_argument("--context", help="context of the kubeconfig (default: the current one)")
        added.add_argument("--namespace", help="namespace (default: the context's)")
        return added

    command("ps", "List the runs of the namespace.")
    for name, text in (
        ("cancel", "End a run: its Pods, Secret and Job."),
        ("logs", "Follow the log of a detached run."),
    ):
        command(name, text).add_argument("run", metavar="RUN")
    doctor = command("doctor", "Check that a run would work, with a remedy for what would not.")
    doctor.add_argument("--image", help="an image to start one Pod with")
    doctor.add_argument("--python", default="python3", help="the image's interpreter (default: python3)")
    doctor.add_argument("--gpus", type=int, default=0, help="GPUs that one Pod will want (default: 0)")
    doctor.add_argument(
        "--pull", default="IfNotPresent", choices=("Always", "IfNotPresent", "Never"), help="image pull policy"
    )
    doctor.add_argument("--no-mpi", action="store_true", help="the image has no MPI")
    rbac = commands.add_parser("rbac", help="Print the Role that users of a namespace need.")
    rbac.add_argument("--namespace", default="default", help="namespace (default: default)")
    who = rbac.add_mutually_exclusive_group(required=True)
    who.add_argument("--user", help="bind the Role to this user")
    who.add_argument("--group", help="bind the Role to this group")
    who.add_argument("--service-account", help="bind the Role to this service account of the namespace")
    rbac.add_argument("--network-policy", action="store_true", help="allow network_policy=True as well")
    return parser


def _rbac(options: argparse.Namespace) -> int:
    from swimmy.manifests import as_yaml, rbac

    if options.service_account:
        subject = {"kind": "ServiceAccount", "name": options.service_account, "namespace": options.namespace}
    else:
        kind, name = ("User", options.user) if options.user else ("Group", options.group)
        subject = {"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}
    sys.stdout.write(as_yaml(rbac(options.namespace, subject, network_policy=options.network_policy)))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from swimmy.doctor import examine
    from swimmy.kubernetes import Cluster
    from swimmy.spec import Pods

    cluster = Cluster(options.kubeconfig, options.context, options.namespace)
    pods = None
    if options.image:
        pods = Pods(
            options.image, cpus="100m", memory="512Mi", gpus=options.gpus, python=options.python,
            image_pull_policy=options.pull, schedule_timeout=60,
        )  # fmt: skip
    bad = 0
    for check in examine(cluster, pods, with_mpi=not options.no_mpi):
        print(check, flush=True)
        bad += not check.ok
    cluster.close()
    return 1 if bad else 0


def _cluster_command(options: argparse.Namespace) -> int:
    from swimmy import api
    from swimmy.kubernetes import Cluster

    cluster = Cluster(options.kubeconfig, options.context, options.namespace)
    try:
        if options.command == "ps":
            for each in api.runs(cluster=cluster):
                print(
                    f"{each['id']:50} {each['created']}  {each['active']} active, {each['succeeded']} done, "
                    f"{each['failed']} failed"
                )
        elif options.command == "cancel":
            api.cancel(options.run, cluster=cluster)
        else:
            with api.attach(options.run, cluster=cluster) as handle:
                for line in handle.logs(follow=True):
                    print(line, flush=True)
    finally:
        cluster.close()
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code: 0, 1 for what went wrong, 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    commands = {"rbac": _rbac, "doctor": _doctor}
    try:
        return commands.get(options.command, _cluster_command)(options)
    except SwimmyError as error:
        print(f"swimmy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
