"""``doctor``: facts, one line for each thing that is off, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from fake_prior import make_prior

from pipeline.commands import doctor as module
from pipeline.commands.doctor import diagnose, doctor


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior") / "prior"
    make_prior(folder)
    return str(folder)


def test_a_sound_machine(prior, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert doctor(prior=prior, json=True) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["usable"] and value["packages"]["ray"] and value["cores"] >= 1
    assert value["backends"]["rasterise numba"] == "works (licence: BSD-2-Clause)"
    assert len(value["prior"]["identity"]) == 64
    assert doctor(prior=prior) == 0
    assert "everything that a run needs works here" in capsys.readouterr().out


def test_a_missing_prior_is_a_problem(tmp_path, capsys):
    assert doctor(prior=str(tmp_path / "none")) == 1
    assert "problem: prior: " in capsys.readouterr().out


def test_a_missing_package_is_a_problem(prior, monkeypatch):
    monkeypatch.setattr(module, "PACKAGES", ("ray", "no-such-package"))
    found = diagnose(prior)
    assert found.problems == ["the package no-such-package is not installed: pip install no-such-package"]


def test_open_ray_settings_are_warned_of(prior, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    warnings = "\n".join(diagnose(prior).warnings)
    assert "RAY_AUTH_MODE=disabled" in warnings and "RAY_ADDRESS=10.0.0.1:6379" in warnings


SERVER = """
import socket, sys, time
listening = socket.create_server((sys.argv[1], 0))
print(listening.getsockname()[1], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("address", "mode", "open_to_strangers"),
    [("0.0.0.0", "", True), ("0.0.0.0", "token", False), ("127.0.0.1", "", False)],
)
def test_an_open_cluster_is_warned_of(prior, tmp_path, address, mode, open_to_strangers):
    # A process of that name: the system cuts names off after fifteen letters, and these are shorter.
    server = tmp_path / "gcs_server"
    server.symlink_to(sys.executable)
    command = [str(server), "-S", "-c", SERVER, address]
    environment = {"RAY_AUTH_MODE": mode, "PYTHONHOME": sys.base_prefix}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        port = process.stdout.readline().strip()
        warned = [line for line in diagnose(prior).warnings if f"(process {process.pid})" in line]
        process.kill()
    assert bool(warned) is open_to_strangers
    if open_to_strangers:
        assert port in warned[0] and "RAY_AUTH_MODE=token" in warned[0]
