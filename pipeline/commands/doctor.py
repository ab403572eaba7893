"""``latentkiln doctor``: checks this machine and prints one line for each problem."""

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
    """``facts`` by name, ``warnings``, and ``problems`` that stop a run."""

    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def doctor(*, prior: str = "embedded", json: bool = False) -> int:
    """Prints versions, devices, backends, the prior and Ray. Returns 0 when ``run`` can work here, else 1."""
    diagnosis = diagnose(prior)
    usable = not diagnosis.problems
    if json:
        value = diagnosis.facts | {"warnings": diagnosis.warnings, "problems": diagnosis.problems, "usable": usable}
        say_json(value, indent=1)
    else:
        for name, value in diagnosis.facts.items():
            if isinstance(value, dict):
                say(f"{name}:")
                for key, item in value.items():
                    say(f"  {key}: {item}")
            else:
                say(f"{name}: {value}")
        for warning in diagnosis.warnings:
            say(f"warning: {warning}")
        for problem in diagnosis.problems:
            say(f"problem: {problem}")
        say("everything that a run needs works here" if usable else "runs will fail here until the problems are solved")
    return EXIT_OK if usable else EXIT_ROWS_FAILED


def diagnose(prior: str) -> Diagnosis:
    """Runs all checks. Raises nothing."""
    diagnosis = Diagnosis()
    diagnosis.facts["latentkiln"] = __version__
    diagnosis.facts["python"] = f"{platform.python_version()} ({sys.executable})"
    diagnosis.facts["system"] = f"{platform.system()} {platform.machine()}"
    _machine(diagnosis)
    _packages(diagnosis)
    _devices(diagnosis)
    _backends(diagnosis)
    _prior(diagnosis, prior)
    _ray(diagnosis)
    _optional(diagnosis)
    return diagnosis


def _machine(diagnosis: Diagnosis) -> None:
    memory = psutil.virtual_memory()
    diagnosis.facts["cores"] = resources.core_count()
    diagnosis.facts["memory"] = f"{memory.total / 2**30:.1f} GiB, {memory.available / 2**30:.1f} GiB free"
    diagnosis.facts["workers"] = f"{resources.default_workers()} of {resources.threads_per_worker()} threads by default"
    if memory.available < _LEAST_MEMORY:
        diagnosis.warnings.append("less than 3 GiB of memory are free: a worker may be killed; close other programs")
    free = shutil.disk_usage(os.getcwd()).free
    diagnosis.facts["disk"] = f"{free / 2**30:.1f} GiB free here"
    if free < 1 << 30:
        diagnosis.warnings.append("less than 1 GiB is free on this disk: choose another with --out")


def _packages(diagnosis: Diagnosis) -> None:
    versions: dict[str, str] = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
            diagnosis.problems.append(f"the package {name} is not installed: pip install {name}")
    diagnosis.facts["packages"] = versions


def _devices(diagnosis: Diagnosis) -> None:
    try:
        import torch

        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except Exception as error:
        diagnosis.problems.append(f"torch cannot be used: {type(error).__name__}: {error}")
        return
    diagnosis.facts["gpus"] = ", ".join(names) or "none (runs use the CPU)"
    if resources.gpu_count() and not names:
        diagnosis.warnings.append("there is a GPU, but this build of torch cannot use it: install one with CUDA")


def _backends(diagnosis: Diagnosis) -> None:
    lines: dict[str, str] = {}
    usable: dict[str, bool] = {}
    for backend in BACKENDS:
        reason = unavailable_reason(backend)
        usable[backend.operation] = usable.get(backend.operation, False) or not reason
        state = f"no: {reason}" if reason else "works"
        lines[f"{backend.operation} {backend.name}"] = f"{state} (licence: {backend.licence})"
    diagnosis.facts["backends"] = lines
    for operation, works in usable.items():
        if not works:
            diagnosis.problems.append(f"no backend for {operation} works here")


def _prior(diagnosis: Diagnosis, spec: str) -> None:
    from pipeline.prior.identity import prior_identity

    try:
        prior = prior_identity(spec)
    except (PriorError, OSError) as error:
        diagnosis.facts["prior"] = f"{spec}: cannot be used"
        diagnosis.problems.append(f"prior: {error}")
        return
    diagnosis.facts["prior"] = {"name": prior.name, "folder": str(prior.folder), "identity": prior.identity}


def _ray(diagnosis: Diagnosis) -> None:
    """Checks versions and settings only: starting Ray takes seconds, and ``run`` reports its errors."""
    if "ray" not in diagnosis.facts["packages"]:
        return
    mode = os.environ.get("RAY_AUTH_MODE", "")
    diagnosis.facts["ray"] = "a local cluster on 127.0.0.1 for each run, with a token, without dashboard"
    if mode.lower() == "disabled":
        diagnosis.warnings.append(
            "RAY_AUTH_MODE=disabled: anyone who reaches Ray's ports can run code as you; unset it"
        )
    diagnosis.warnings += exposed_servers()
    if address := os.environ.get("RAY_ADDRESS"):
        diagnosis.warnings.append(f"RAY_ADDRESS={address} is ignored; name a cluster with --address")


def _optional(diagnosis: Diagnosis) -> None:
    lines = {"node": "not found (only tests use it)"}
    if node := shutil.which("node"):
        try:
            process = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=False)
            lines["node"] = process.stdout.strip() or "does not answer"
        except (OSError, subprocess.SubprocessError):
            lines["node"] = "does not answer"
    diagnosis.facts["optional"] = lines
