"""``ray job submit`` of a run to a cluster on the loopback that asks for tokens, and what Prometheus sees of it.

Needs the package ``ray[default]``, which a plain installation does not bring: run it with an interpreter that has it.
A submission without the token has to be refused.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from harness import HERE, arguments, faults_of, finish, workplace, write_manifest

PORT, DASHBOARD, METRICS = 6411, 8411, 8412
RAY = [sys.executable, "-m", "ray.scripts.scripts"]


def scrape() -> str:
    """The node's metrics as text; "" while there are none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS}/metrics", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def main() -> None:
    chosen = arguments(__doc__, rows=(8, 100))
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # The first name is Ray's switch for "one machine only": every port is bound to 127.0.0.1.
    environment = os.environ | token | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"LATENTKILN_STEP_SECONDS": "0.05", "RAY_metrics_report_interval_ms": "1000"}
    temporary = Path(f"/tmp/lkj{os.getpid()}")
    with workplace(chosen) as folder:
        manifest, out = write_manifest(folder, chosen.rows, "work 40"), folder / "out"
        address = ["--address", f"http://127.0.0.1:{DASHBOARD}"]
        start = [*RAY, "start", "--head", f"--port={PORT}", "--node-ip-address=127.0.0.1", "--num-cpus=2",
                 "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD}", f"--metrics-export-port={METRICS}",
                 f"--temp-dir={temporary}", "--object-store-memory=80000000", "--block"]  # fmt: skip
        with (folder / "ray.log").open("w") as log:
            cluster = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
            try:
                command = [sys.executable, str(HERE / "slow_run.py"), str(manifest), str(out)]
                command += ["--address", f"127.0.0.1:{PORT}", "--workers", "1"]
                submit = [*RAY, "job", "submit", *address, "--", *command]
                deadline, done, seen = time.monotonic() + 480, None, ""
                while time.monotonic() < deadline and (done is None or done.returncode):
                    if cluster.poll() is not None:
                        # Ray gives itself half a minute to start; a busy machine takes longer.
                        cluster = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
                    # Until the dashboard is up.
                    time.sleep(3)
                    done = subprocess.run(submit, env=environment, capture_output=True, text=True, check=False)
                    seen = scrape()
                stranger = {name: value for name, value in environment.items() if name not in token}
                stranger |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
                refused = subprocess.run(submit, env=stranger, capture_output=True, text=True, check=False)
            finally:
                cluster.terminate()
                try:
                    cluster.wait(45)
                except subprocess.TimeoutExpired:
                    cluster.kill()
                    cluster.wait()
        shutil.rmtree(temporary, ignore_errors=True)
        faults = faults_of(out, manifest)
        series = sorted({line.split("{")[0] for line in seen.splitlines() if line.startswith("ray_latentkiln_")})
        code = done.returncode if done else -1
        if code:
            print((folder / "ray.log").read_text()[-1500:], (done.stdout + done.stderr)[-1500:] if done else "")
        ok = code == 0 and not any(faults.values()) and refused.returncode != 0 and bool(series)
        finish(ok, rows=chosen.rows, exit=code, stranger_exit=refused.returncode, series=series, **faults)


if __name__ == "__main__":
    main()
