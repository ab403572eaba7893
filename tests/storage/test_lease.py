"""Leases: one holder, expiry by the store's clock, and renewal; on S3 and in memory."""

from __future__ import annotations

import time

from pipeline.core.location import RemotePath
from pipeline.storage import lease
from pipeline.storage.store import store_of


def owner(run="r1", attempt=1, machine="m1", pid=1):
    return lease.Owner(run, attempt, machine, pid)


def test_a_lease_is_held_by_one_and_given_back(root):
    folder = root / "boot"
    mine = lease.acquire(folder, owner())
    assert mine is not None and mine.held and lease.holder(folder)["run"] == "r1"
    assert lease.acquire(folder, owner("r2", machine="m2")) is None
    mine.renew()
    assert mine.held and lease.acquire(folder, owner("r2", machine="m2")) is None
    mine.release()
    assert not mine.held and lease.holder(folder) is None and not store_of(root).files(folder)
    assert lease.acquire(folder, owner("r2", machine="m2")).held


def test_a_lease_expires_by_the_stores_clock(root, monkeypatch):
    folder = root / "boot"
    dead = lease.acquire(folder, owner(), seconds=0.3)
    assert lease.acquire(folder, owner("r2", machine="m2")) is None
    # A node whose clock is a day off sees no more than others.
    real = time.time
    if root.scheme == "s3":
        monkeypatch.setattr(time, "time", lambda: real() + 86_400)
        assert lease.acquire(folder, owner("r2", machine="m2")) is None
        monkeypatch.setattr(time, "time", real)
    time.sleep(2.4)
    assert not dead.held
    heir = lease.acquire(folder, owner("r2", machine="m2"))
    assert heir is not None and heir.held
    dead.renew()
    dead.release()
    assert heir.held and lease.holder(folder)["run"] == "r2"


def test_a_lease_outlives_a_store_that_was_away_if_no_one_took_it(proxy, s3):
    folder = RemotePath(s3) / "boot"
    mine = lease.acquire(folder, owner(), seconds=1.0)
    proxy.rule = lambda method, path: 503
    time.sleep(1.0)
    assert not mine.held and not mine.ensure()
    proxy.rule = lambda method, path: None
    assert mine.ensure() and mine.held
    time.sleep(3.1)
    assert lease.acquire(folder, owner("r2", machine="m2")) and not mine.ensure()


def test_dead_holders_are_known_at_once(root):
    import subprocess

    folder = root / "boot"
    child = subprocess.Popen(["true"])
    child.wait()
    here = lease.Owner.here("r2")
    assert lease.acquire(folder, lease.Owner("r1", 1, here.machine, child.pid))
    theirs = lease.acquire(folder, here)
    assert theirs is not None
    # Our own process lives.
    assert lease.acquire(folder, lease.Owner("r3", 1, here.machine, 1)) is None
    # The next attempt of the same run: its driver has ended the earlier one.
    heir = lease.acquire(folder, lease.Owner("r2", 2, "elsewhere", 5))
    assert heir is not None
    theirs.renew()
    assert not theirs.held and heir.held


def test_a_keeper_renews_until_the_end(s3):
    folder = RemotePath(s3) / "boot"
    keeper = lease.LeaseRenewer()
    mine = lease.acquire(folder, owner(), seconds=1.0)
    with keeper.renewing(mine):
        time.sleep(2.2)
        assert mine.held and lease.acquire(folder, owner("r2", machine="m2")) is None
    keeper.close()
    assert lease.holder(folder) is None
