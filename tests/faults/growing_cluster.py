"""A cluster that has no machine to begin with: Ray's own autoscaler starts nodes when a run asks for workers, and stops
those that the run gives back while one long row is still being built. The nodes are processes of this machine, which
is what the autoscaler's fake provider makes. They have one CPU each: less than a run on a larger machine asks for
while it knows of no node.

Needs root and ``unshare``: Ray's processes get numbers and a network of their own, and all end with this program.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
from harness import HERE, arguments, faults_of, finish, workplace, write_manifest

# Where Ray's fake provider looks for the head, and nowhere else.
PORT = "6379"
INSIDE = "LATENTKILN_INSIDE"
MOST_NODES = 3
# A node that nothing runs on is stopped so soon.
IDLE_SECONDS = 2.0
PATIENCE_SECONDS = 300.0


def autoscaling(folder: Path) -> Path:
    """The autoscaler's configuration: a head without CPUs, and up to three nodes with one each."""
    node = {"node_config": {}, "resources": {"CPU": 1, "object_store_memory": 80_000_000}}
    provider = {"type": "fake_multinode", "head_node_id": f"{'f' * 51}00000", "use_node_id_as_ip": True}
    provider |= {"disable_node_updaters": True, "disable_launch_config_check": True}
    lists = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
    config = {f"{name}_commands": [] for name in lists} | {
        "cluster_name": "growing",
        "max_workers": MOST_NODES,
        "upscaling_speed": float(MOST_NODES),
        "idle_timeout_minutes": IDLE_SECONDS / 60,
        "file_mounts": {},
        "cluster_synced_files": [],
        "provider": provider,
        "auth": {"ssh_user": "nobody"},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"node_config": {}, "resources": {"CPU": 0}, "max_workers": 0},
            "node": node | {"min_workers": 0, "max_workers": MOST_NODES},
        },
    }
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    return path


def manifest_of(folder: Path, rows: int, long: int) -> Path:
    """``rows`` rows, one of them of ``long`` steps: it is begun first, and is at work when all others are done."""
    path = write_manifest(folder, rows, "work 20")
    path.write_text(path.read_text().replace("work 20", f"work {long}", 1))
    return path


def nodes() -> int:
    """How many there are beside the head: each has a raylet."""
    return sum(process.info["name"] == "raylet" for process in psutil.process_iter(["name"])) - 1


def watch(process: subprocess.Popen[bytes]) -> list[int]:
    """How many nodes there were until ``process`` ended: each number that followed on another one."""
    seen, end = [nodes()], time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        if time.monotonic() > end:
            process.kill()
        if (now := nodes()) != seen[-1]:
            seen.append(now)
        time.sleep(0.1)
    return seen


def main() -> None:
    chosen = arguments(__doc__, rows=(4, 60), long=(300, 1500))
    with workplace(chosen) as folder:
        environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "LATENTKILN_STEP_SECONDS": "0.05"}
        environment |= {"LATENTKILN_SPARE_SECONDS": "1", "LATENTKILN_PATIENCE_SECONDS": "2"}
        manifest, out = manifest_of(folder, chosen.rows, chosen.long), folder / "out"
        temporary = f"/tmp/lkg{secrets.token_hex(3)}"
        start = [str(Path(sys.executable).with_name("ray")), "start", "--head", f"--port={PORT}", "--num-cpus=0"]
        start += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={temporary}"]
        start += [f"--autoscaling-config={autoscaling(folder)}", "--object-store-memory=80000000"]
        begun = time.monotonic()
        with (folder / "ray.log").open("w") as log:
            try:
                subprocess.run(start, env=environment, stdout=log, stderr=log, check=True, timeout=180)
                command = [sys.executable, str(HERE / "slow_run.py"), str(manifest), str(out), "--lockstep", "1"]
                command += ["--address", f"127.0.0.1:{PORT}"]
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                seen = watch(process)
            finally:
                monitor = Path(temporary) / "session_latest" / "logs" / "monitor.err"
                scaling = monitor.read_text() if monitor.exists() else ""
                shutil.rmtree(temporary, ignore_errors=True)
        faults = faults_of(out, manifest)
        if process.returncode:
            print(scaling[-1000:], (folder / "ray.log").read_text()[-2000:], sep="\n")
        # It came from nothing, and gave machines back while it was still at work.
        moved = seen[0] == 0 and max(seen) == MOST_NODES and min(seen[seen.index(MOST_NODES) :]) < MOST_NODES
        ok = process.returncode == 0 and moved and not any(faults.values())
        seconds = round(time.monotonic() - begun, 1)
        finish(ok, rows=chosen.rows, exit=process.returncode, nodes=seen, seconds=seconds, **faults)


if __name__ == "__main__":
    if os.environ.get(INSIDE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        main()
    else:
        words = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, *sys.argv]
        sys.exit(subprocess.run(words, env=os.environ | {INSIDE: "1"}, check=False).returncode)
