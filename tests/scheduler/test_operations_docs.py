"""What docs/operations.md shows: its commands exist as they are written, and its KubeRay file has fields that KubeRay
knows. No cluster is asked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from pipeline.cli import cli

TEXT = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()

# Names of fields as the API reference of ray.io/v1 has them, as far as the file goes; of pods, those of Kubernetes.
POD = {
    "terminationGracePeriodSeconds": int,
    "containers": [
        {
            "name": str,
            "image": str,
            "env": [{"name": str, "value": str}],
            "envFrom": [{"secretRef": {"name": str}}],
            "resources": {"requests": dict, "limits": dict},
        }
    ],
}
TEMPLATE = {"spec": POD, "metadata": dict}
CLUSTER = {
    "rayVersion": str,
    "enableInTreeAutoscaling": bool,
    "authOptions": {"mode": str, "secretName": str},
    "headGroupSpec": {"rayStartParams": dict, "template": TEMPLATE, "serviceType": str},
    "workerGroupSpecs": [
        {
            "groupName": str,
            "replicas": int,
            "minReplicas": int,
            "maxReplicas": int,
            "numOfHosts": int,
            "rayStartParams": dict,
            "template": TEMPLATE,
        }
    ],
}
RAY_JOB = {
    "apiVersion": str,
    "kind": str,
    "metadata": {"name": str},
    "spec": {
        "entrypoint": str,
        "shutdownAfterJobFinishes": bool,
        "ttlSecondsAfterFinished": int,
        "backoffLimit": int,
        "activeDeadlineSeconds": int,
        "submissionMode": str,
        "rayClusterSpec": CLUSTER,
    },
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def strangers(value: Any, known: Any, place: str = "") -> list[str]:
    """Places in ``value`` that ``known`` does not have, or has with another type."""
    if isinstance(known, dict):
        if not isinstance(value, dict):
            return [place]
        found = [f"{place}.{key}" for key in value if key not in known]
        return found + [p for key in value if key in known for p in strangers(value[key], known[key], f"{place}.{key}")]
    if isinstance(known, list):
        if not isinstance(value, list):
            return [place]
        return [p for number, item in enumerate(value) for p in strangers(item, known[0], f"{place}[{number}]")]
    return [] if isinstance(value, known) else [place]


@pytest.fixture(scope="module")
def job():
    (text,) = blocks("yaml")
    return yaml.safe_load(text)


def test_the_kuberay_file_has_known_fields_of_the_right_types(job):
    assert strangers(job, RAY_JOB) == []
    assert strangers({"spec": {"entrypiont": "x", "backoffLimit": "3"}}, RAY_JOB) == [
        ".spec.entrypiont",
        ".spec.backoffLimit",
    ]
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")


def test_the_kuberay_file_keeps_kuberays_own_rules(job):
    cluster = job["spec"]["rayClusterSpec"]
    # KubeRay refuses token mode without a version, or with one before 2.52.
    assert cluster["authOptions"] == {"mode": "token"}
    assert tuple(map(int, cluster["rayVersion"].split("."))) >= (2, 52, 0)
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        params = group["rayStartParams"]
        assert all(isinstance(value, str) for value in params.values())
        # Its operator asks the head's dashboard over the network how the job is.
        assert params.get("dashboard-host", "0.0.0.0") == "0.0.0.0"
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["image"] == "latentkiln:cuda"
        drain = {one["name"]: one["value"] for one in container["env"]}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
        assert int(drain) < pod["terminationGracePeriodSeconds"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def commands(job: Any) -> list[str]:
    shell = "\n".join(blocks("")).replace("\\\n", " ")
    return [job["spec"]["entrypoint"], *re.findall(r"latentkiln [a-z]+ [^#\n>&]*", shell)]


def test_commands_of_the_guide_are_commands_of_ours(job):
    found = commands(job)
    assert len(found) >= 3
    for command in found:
        program, verb, *words = shlex.split(command)
        assert program == "latentkiln"
        with cli.commands[verb].make_context(verb, words) as context:
            assert context.params
    with pytest.raises(click.NoSuchOption):
        cli.commands["run"].make_context("run", ["x.csv", "--no-such-option"])
