"""The acceptance table: what must be shown on a real kubelet, and which tests show it.

`tox run -e cluster,openmpi` prints it at the end of each of the two, a row a scenario: whether its tests have passed, and
the sentence that a user would have read.
"""

from __future__ import annotations

SCENARIOS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("3 Pods of 2 ranks, MPICH", ("test_a_world_of_six_ranks_on_three_pods",)),
    ("3 Pods, Open MPI", ("openmpi",)),
    ("a closure; requests do not grow with Pods", ("test_closures_travel",)),
    ("payload and result larger than a message", ("test_a_result_and_a_payload_larger",)),
    ("versions differ", ("test_versions_differ",)),
    ("bad image name", ("test_invalid_image_name",)),
    ("image missing, policy Never", ("test_image_that_is_nowhere",)),
    ("image cannot be pulled", ("test_image_that_cannot_be_pulled",)),
    ("Secret or ConfigMap missing", ("test_missing_secret", "test_missing_config_map")),
    ("command missing", ("test_command_missing",)),
    ("image without swimmy", ("test_image_without_swimmy",)),
    ("impossible cpu, memory, GPU, nodeSelector", ("test_unschedulable",)),
    ("waiting is explained", ("test_what_the_wait_is_for",)),
    ("quota, for all or some of the Pods", ("test_quota",)),
    ("no such namespace", ("test_a_namespace_that_is_not_there",)),
    ("no such service account", ("test_a_service_account",)),
    ("Pod security refuses", ("test_pod_security",)),
    ("rights (RBAC)", ("test_the_printed_role",)),
    ("a child out of memory while the agent lives", ("test_a_child_out_of_memory",)),
    ("process 1 out of memory", ("test_process_one_out_of_memory",)),
    ("a rank killed, exiting, raising, lacking a library", ("test_a_rank_that_fails_is_named",)),
    ("mpiexec or proxy killed", ("test_mpi_itself_killed",)),
    ("agent killed", ("test_agent_killed",)),
    ("agent silent", ("test_agent_silent",)),
    ("Pod or Job deleted", ("test_pod_deleted", "test_job_deleted")),
    ("evicted, by the API and by the kubelet", ("test_evicted",)),
    ("preempted", ("test_preempted",)),
    ("deadline", ("test_deadline",)),
    ("taint NoExecute; machine lost", ("test_tainted_node",)),
    ("held by Kueue's queue (let in by hand)", ("test_a_run_of_a_queue",)),
    ("a map Pod comes back alone", ("test_a_map_pod_that_dies",)),
    ("worlds that fail alone", ("test_worlds_that_fail_alone",)),
    ("kill -9 of the client: nothing is left", ("test_kill_9_of_the_client",)),
    ("API server restarted, etcd compacted: 410", ("test_the_api_server_dies",)),
    (
        "API server away for longer than the lease, at the start",
        ("test_the_api_server_is_away", "test_a_run_is_submitted_while"),
    ),
    ("log rotation loses no line", ("test_every_line_of_the_log",)),
    ("wrong key, no key", ("test_who_does_not_hold",)),
    ("port scan: agent and MPI only", ("test_a_port_scan",)),
    ("restricted, read-only root, not root, no capabilities", ("test_pod_options_reach_the_pod",)),
    ("detached run found again", ("test_a_detached_run",)),
    ("a driver in a Pod", ("test_a_driver_in_a_pod",)),
    ("the documentation's example", ("test_the_example_of_the_documentation",)),
    ("doctor", ("test_doctor",)),
)


def rows(outcomes: dict[str, str], sentences: list[tuple[str, str, str]]) -> list[str]:
    """The table's lines. `outcomes`: by test id; `sentences`: test name, error's type, its sentence."""
    lines = []
    for words, names in SCENARIOS:
        of_it = [outcome for test, outcome in outcomes.items() if any(name in test for name in names)]
        if not of_it:
            state = "not run"
        else:
            bad = [outcome for outcome in of_it if outcome != "passed"]
            state = f"{len(of_it)} passed" if not bad else f"{len(bad)} of {len(of_it)} {bad[0]}"
        lines.append(f"{words} | {state}")
        said = [(error, text) for test, error, text in sentences if any(name in test for name in names)]
        lines += [f"    {error}: {text}" for error, text in said]
    return lines
