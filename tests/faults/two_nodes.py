"""Two Ray nodes in network namespaces of their own on one machine: a node killed, its link cut without a kill, one
drained, as a machine that is about to be taken away is, and one that joins while the run goes on.

Needs root, ``ip netns`` and veth. The driver runs beside the head node; the other node's worker holds rows when its
node goes. The run has to end with every row built, by the node that is left; or by both, where the other one joins.
``--part together`` is all of it in one run: the other node joins, is drained, comes again, is killed, comes again, and
has its link cut.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

from harness import HERE, arguments, faults_of, finish, kill, wait_until, workplace, write_manifest

HEAD, OTHER = "10.203.7.1", "10.203.7.2"
PORT = "6399"
# A node that does not answer is declared dead after some seconds, not after Ray's half minute.
QUICK = {"RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "1000"}
QUICK |= {"RAY_health_check_failure_threshold": "3", "RAY_health_check_initial_delay_ms": "1000"}

# What Ray itself does when its node's process is told to end.
DRAIN = """
import sys, time
import ray
from ray._raylet import GcsClient
from ray.core.generated import autoscaler_pb2
ray.init(address=sys.argv[1], log_to_driver=False)
(node,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[2]]
reason = autoscaler_pb2.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION
deadline = int(1000 * (time.time() + 60))
print(GcsClient(address=sys.argv[1]).drain_node(node, reason, "to be taken away", deadline))
"""


class TwoNodes:
    """The namespaces with a Ray node in each, or in the head's alone unless ``both``; a context."""

    def __init__(self, folder: Path, *, both: bool = True):
        self._both = both
        tag = f"{os.getpid() % 100_000}"
        self.head, self.other, self.wires = f"lka{tag}", f"lkb{tag}", (f"lkva{tag}", f"lkvb{tag}")
        self._temporary = Path(f"/tmp/lkf{tag}")
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        quiet = {"RAY_USAGE_STATS_ENABLED": "0", "LATENTKILN_STEP_SECONDS": "0.05", "OMP_NUM_THREADS": "1"}
        # Whoever starts this may have kept Ray to the loopback; these two nodes are to meet.
        joined = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
        self.environment = os.environ | QUICK | token | quiet | joined
        self._log = (folder / "nodes.log").open("w")

    def __enter__(self) -> TwoNodes:
        try:
            one, two = self.wires
            for words in (
                f"netns add {self.head}",
                f"netns add {self.other}",
                f"link add {one} netns {self.head} type veth peer name {two} netns {self.other}",
                f"-n {self.head} addr add {HEAD}/24 dev {one}",
                f"-n {self.other} addr add {OTHER}/24 dev {two}",
                *(
                    f"-n {space} link set {wire} up"
                    for space, wire in zip((self.head, self.other), self.wires, strict=True)
                ),
                *(f"-n {space} link set lo up" for space in (self.head, self.other)),
            ):
                ip(words)
            self._start(self.head, "--head", f"--port={PORT}", f"--node-ip-address={HEAD}",
                        f"--temp-dir={self._temporary}", "--include-dashboard=false")  # fmt: skip
            if self._both:
                self.join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for space in (self.head, self.other):
            self.kill(space)
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self, space: str, *options: str) -> None:
        common = ["--num-cpus=1", "--object-store-memory=80000000", "--disable-usage-stats"]
        command = [*self.inside(space), str(Path(sys.executable).with_name("ray")), "start", *options, *common]
        subprocess.run(command, env=self.environment, stdout=self._log, stderr=self._log, check=True, timeout=180)

    @staticmethod
    def inside(space: str) -> list[str]:
        return ["ip", "netns", "exec", space]

    def join(self) -> None:
        """Starts the other node."""
        self._start(self.other, f"--address={HEAD}:{PORT}", f"--node-ip-address={OTHER}")

    def run(self, manifest: Path, out: Path) -> subprocess.Popen[bytes]:
        """``latentkiln run`` beside the head node; how many workers there are follows from the nodes."""
        options = ["--address", f"{HEAD}:{PORT}", "--lockstep", "2"]
        command = [
            *self.inside(self.head),
            sys.executable,
            str(HERE / "slow_run.py"),
            str(manifest),
            str(out),
            *options,
        ]
        with out.with_name(out.name + ".log").open("w") as log:
            return subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def pids(self, space: str) -> list[int]:
        """The processes of a namespace."""
        done = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
        return [int(word) for word in done.stdout.split()]

    def kill(self, space: str) -> int:
        """SIGKILL to all of them."""
        import psutil

        alive = [psutil.Process(pid) for pid in self.pids(space) if psutil.pid_exists(pid)]
        return kill(alive)

    def drain(self) -> None:
        """Tells the head that the other node will be taken away in a minute."""
        command = [*self.inside(self.head), sys.executable, "-c", DRAIN, f"{HEAD}:{PORT}", OTHER]
        subprocess.run(command, env=self.environment, stdout=self._log, stderr=self._log, check=True, timeout=120)

    def again(self) -> None:
        """The other node, whatever has become of it, is gone; a new one joins in its place."""
        self.kill(self.other)
        self.join()

    def cut(self) -> None:
        """Takes the wire between the two away; their processes know nothing of it."""
        ip(f"-n {self.other} link set {self.wires[1]} down")


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True, capture_output=True)


def builders(out: Path) -> set[int]:
    """Processes that hold rows now."""
    import json

    found = set()
    for log in out.glob("*/log.jsonl"):
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        if lines and lines[-1]["event"] == "stage":
            found.add(next(line["pid"] for line in reversed(lines) if line["event"] == "began"))
    return found


def scenario(name: str, folder: Path, rows: int) -> dict:
    """One run during which the other node goes, by ``name``: ``kill``, ``cut`` or ``drain``; or comes: ``join``; or all
    of that: ``together``."""
    folder.mkdir()
    for shared in ("cube.obj", "prior"):
        (folder / shared).symlink_to(folder.parent / shared)
    (folder / "cube.obj").unlink()
    shutil.copy(folder.parent / "cube.obj", folder / "cube.obj")
    # Whoever joins shall find something left to do.
    rows = {"join": 3, "together": 5}.get(name, 1) * rows
    manifest, out = write_manifest(folder, rows, "work 40" if name == "together" else "work 80"), folder / "out"
    comes, goes = name in ("join", "together"), ("drain", "kill", "cut") if name == "together" else (name,)
    there = []
    with TwoNodes(folder, both=not comes) as nodes:
        begun = time.monotonic()
        process = nodes.run(manifest, out)
        try:
            if comes:
                wait_until(lambda: len(builders(out)) == 1 or process.poll() is not None, 180, "the head at work")
                nodes.join()
            for number, event in enumerate(goes):
                if number:
                    nodes.again()
                wait_until(lambda: at_work(nodes, out) == [1, 1] or process.poll() is not None, 180, "both at work")
                there.append(at_work(nodes, out)[1])
                if event == "kill":
                    nodes.kill(nodes.other)
                elif event != "join":
                    getattr(nodes, event)()
            # The head alone may have to build them all, four seconds each.
            code = process.wait(timeout=300 + 8 * rows)
        finally:
            process.kill()
        seconds = time.monotonic() - begun
    log = (out / "run.events.jsonl").read_text()
    told = log.count("is going away")
    found = {"exit": code, "workers_there": there, "seconds": round(seconds, 1), "told": told}
    return found | faults_of(out, manifest)


def at_work(nodes: TwoNodes, out: Path) -> list[int]:
    """How many processes of the head and of the other node hold rows."""
    holders = builders(out)
    return [len(set(nodes.pids(space)) & holders) for space in (nodes.head, nodes.other)]


def main() -> None:
    chosen = arguments(__doc__, ("kill", "cut", "drain", "join", "together"), rows=(8, 60))
    with workplace(chosen) as folder:
        found = {name: scenario(name, folder / name, chosen.rows) for name in chosen.parts}
    ok = all(
        one["exit"] == 0
        and all(count == 1 for count in one["workers_there"])
        and len(one["workers_there"]) == (3 if name == "together" else 1)
        and not (one["missing"] or one["different"] or one["strays"])
        and one["told"] == (name in ("drain", "together"))
        for name, one in found.items()
    )
    finish(ok, rows=chosen.rows, **found)


if __name__ == "__main__":
    main()
