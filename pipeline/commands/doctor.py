"""``latentkiln doctor``: what works on this machine, and one line for each thing that is off."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import psutil

from pipeline import __version__
from pipeline.core.backends import BACKENDS, unavailable_reason
from pipeline.core.errors import EXIT_OK, EXIT_ROWS_FAILED, PriorError
from pipeline.core.terminal import say, say_json
from pipeline.scheduler import resources
from pipeline.scheduler.cluster import exposed_servers

PACKAGES = ("torch", "diffusers", "transformers", "numba", "ray", "xatlas", "DracoPy", "pygltflib")
_LEAST_MEMORY = 3 << 30


@dataclass
class Diagnosis:
    """``facts`` by name; ``warnings`` for what is off but can be lived with; ``problems`` that stop a run."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def doctor(*, prior: str = "embedded", json: bool = False) -> int:
    """Prints versions, devices, backends, the prior and Ray. Returns 0 when ``run`` can work here, else 1."""
    found = diagnose(prior)
    usable = not found.problems
    if json:
        value = found.facts | {"warnings": found.warnings, "problems": found.problems, "usable": usable}
        say_json(value, indent=1)
    else:
        for name, value in found.facts.items():
            if isinstance(value, dict):
                say(f"{name}:")
                for key, item in value.items():
                    say(f"  {key}: {item}")
            else:
                say(f"{name}: {value}")
        for warning in found.warnings:
            say(f"warning: {warning}")
        for problem in found.problems:
            say(f"problem: {problem}")
        say("all that is needed works here" if usable else "runs will fail here until the problems are solved")
    return EXIT_OK if usable else EXIT_ROWS_FAILED


def diagnose(prior: str) -> Diagnosis:
    """Looks at everything; raises nothing."""
    found = Diagnosis()
    found.facts["latentkiln"] = __version__
    found.facts["python"] = f"{platform.python_version()} ({sys.executable})"
    found.facts["system"] = f"{platform.system()} {platform.machine()}"
    _machine(found)
    _packages(found)
    _devices(found)
    _backends(found)
    _prior(found, prior)
    _ray(found)
    _optional(found)
    return found


def _machine(found: Diagnosis) -> None:
    memory = psutil.virtual_memory()
    found.facts["cores"] = resources.core_count()
    found.facts["memory"] = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"
    found.facts["workers"] = f"{resources.default_workers()} of {resources.threads_per_worker()} threads by default"
    if memory.available < _LEAST_MEMORY:
        found.warnings.append("less than 3 GiB of memory are free: a worker may be killed; close other programs")
    free = shutil.disk_usage(os.getcwd()).free
    found.facts["disk"] = f"{free / 2**30:.1f} GiB free here"
    if free < 1 << 30:
        found.warnings.append("less than 1 GiB is free on this disk: choose another with --out")


def _packages(found: Diagnosis) -> None:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
            found.problems.append(f"the package {name} is not installed: pip install {name}")
    found.facts["packages"] = versions


def _devices(found: Diagnosis) -> None:
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:
        found.problems.append(f"torch cannot be used: {type(error).__name__}: {error}")
        return
    found.facts["gpus"] = ", ".join(names) or "none (runs use the CPU)"
    if resources.gpu_count() and not names:
        found.warnings.append("there is a GPU, but this build of torch cannot use it: install one with CUDA")


def _backends(found: Diagnosis) -> None:
    lines: dict[str, str] = {}
    usable: dict[str, bool] = {}
    for backend in BACKENDS:
        reason = unavailable_reason(backend)
        usable[backend.operation] = usable.get(backend.operation, False) or not reason
        state = f"no: {reason}" if reason else "works"
        lines[f"{backend.operation} {backend.name}"] = f"{state} (licence: {backend.licence})"
    found.facts["backends"] = lines
    for operation, works in usable.items():
        if not works:
            found.problems.append(f"no backend for {operation} works here")


def _prior(found: Diagnosis, spec: str) -> None:
    from pipeline.prior.identity import prior_identity

    try:
        prior = prior_identity(spec)
    except (PriorError, OSError) as error:
        found.facts["prior"] = f"{spec}: cannot be used"
        found.problems.append(f"prior: {error}")
        return
    found.facts["prior"] = {"name": prior.name, "folder": str(prior.folder), "identity": prior.identity}


def _ray(found: Diagnosis) -> None:
    """Versions and settings only: starting Ray takes seconds, and ``run`` says what goes wrong."""
    if "ray" not in found.facts["packages"]:
        return
    mode = os.environ.get("RAY_AUTH_MODE", "")
    found.facts["ray"] = "a local cluster on 127.0.0.1 for each run, with a token, without dashboard"
    if mode.lower() == "disabled":
        found.warnings.append("RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code as you; unset it")
    found.warnings += exposed_servers()
    if address := os.environ.get("RAY_ADDRESS"):
        found.warnings.append(f"RAY_ADDRESS={address} is not used: name a cluster with --address")


def _optional(found: Diagnosis) -> None:
    lines = {"node": "not found (only tests use it)"}
    if node := shutil.which("node"):
        try:
            done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=False)
            lines["node"] = done.stdout.strip() or "does not answer"
        except (OSError, subprocess.SubprocessError):
            lines["node"] = "does not answer"
    found.facts["optional"] = lines
