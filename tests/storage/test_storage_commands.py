"""The command with everything at URLs: manifest and meshes in a bucket, assets into one."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
from pathlib import Path

import pytest
from meshes import CUBE, glb_bytes
from s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, environment
from stub_recipe import make_toolbox

from pipeline.cli import main
from pipeline.commands.run import RunOptions, run_manifest
from pipeline.core.errors import MeshError
from pipeline.core.location import RemotePath
from pipeline.storage import input_cache, publish, snapshot
from pipeline.storage.inputs import fetch_mesh
from pipeline.storage.store import store_of

CUBE_GLTF = {
    "asset": {"version": "2.0"}, "buffers": [{"uri": "sub/cube%20data.bin", "byteLength": 42}],
    "bufferViews": [{"buffer": 0, "byteLength": 36}, {"buffer": 0, "byteOffset": 36, "byteLength": 6}],
    "accessors": [
        {"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3", "min": [0, 0, 0], "max": [1, 1, 0]},
        {"bufferView": 1, "componentType": 5123, "count": 3, "type": "SCALAR"},
    ],
    "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}], "nodes": [{"mesh": 0}],
    "scenes": [{"nodes": [0]}], "scene": 0,
}  # fmt: skip
TRIANGLE = base64.b64decode("AAAAAAAAAAAAAAAAAACAPwAAAAAAAAAAAAAAAAAAgD8AAAAAAAABAAIA")


@pytest.fixture(scope="module")
def prior(prior_folder):
    return str(prior_folder)


@pytest.fixture
def shop(s3):
    """A folder in the bucket with a mesh."""
    place = RemotePath(s3)
    store_of(place).write(place / "shop" / "meshes" / "cube.obj", CUBE.encode())
    return place / "shop"


def manifest(shop, *rows):
    place = shop / "m.csv"
    store_of(place).write(place, ("id,prompt,mesh\n" + "".join(f"{row}\n" for row in rows)).encode())
    return place


def run(place, out, prior, **options):
    options = {"serial": True, "lockstep": 1, "prior": prior} | options
    return run_manifest(RunOptions(manifest=place, out=out, **options), hooks=make_toolbox())


def test_a_manifest_in_a_bucket_from_check_to_clean(shop, s3, prior, capsys):
    place, out = manifest(shop, "a,fine,meshes/cube.obj", "b,fine,meshes/cube.obj"), RemotePath(s3) / "out"
    assert main(["check", str(place), "--prior", prior]) == 0
    assert main(["plan", str(place), "--out", str(out), "--prior", prior]) == 0
    assert "a\tbuild\tnew\nb\tbuild\tnew\n2 to build" in capsys.readouterr().out
    assert run(place, out, prior) == 0
    assert "built 2, 0 up to date, 0 failed in" in capsys.readouterr().out
    assert main(["plan", str(place), "--out", str(out), "--prior", prior]) == 0
    assert "2 up to date" in capsys.readouterr().out
    assert main(["status", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "a\tdone" in printed and "run ended (done): 2 done" in printed
    # An output is lost, a mesh changes, a row goes.
    store_of(out).delete(out / "a" / "asset.glb")
    assert main(["plan", str(place), "--out", str(out), "--prior", prior]) == 0
    assert "a\tbuild\toutput missing or damaged: asset.glb is missing" in capsys.readouterr().out
    store_of(out).write(out / "a" / "asset.glb", b"fine 2")
    assert main(["plan", str(place), "--out", str(out), "--prior", prior]) == 0
    assert "asset.glb does not match its recorded hash" in capsys.readouterr().out
    store_of(shop).write(shop / "meshes" / "cube.obj", CUBE.replace("v -1 -1 -1", "v -2 -1 -1").encode())
    manifest(shop, "a,fine,meshes/cube.obj")
    assert main(["plan", str(place), "--out", str(out), "--prior", prior, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in told["rows"]] == ["a"] and told["not_in_manifest"] == ["b"]
    assert run(place, out, prior) == 0
    capsys.readouterr()
    assert main(["clean", str(place), "--out", str(out)]) == 0
    assert "b\twould be deleted" in capsys.readouterr().out and store_of(out).stat(out / "b" / "record.json")
    assert main(["clean", str(place), "--out", str(out), "--yes"]) == 0
    assert not store_of(out).files(out / "b") and store_of(out).stat(out / "a" / "record.json")


def test_nothing_is_written_below_names_that_are_not_ours(shop, s3, prior, capsys):
    place, out = manifest(shop, "a,fine,meshes/cube.obj", "b,,meshes/cube.obj"), RemotePath(f"{s3}/out")
    for name in ("a", "b"):
        store_of(out).write(out / name / "notes.txt", b"mine")
    assert run(place, out, prior) == 1
    assert "contains files that do not belong to an asset (notes.txt)" in capsys.readouterr().out
    assert all(list(store_of(out).files(out / name)) == ["notes.txt"] for name in ("a", "b"))


def test_wrong_rows_at_a_url_are_told_and_recorded(shop, s3, prior, capsys):
    rows = ["good,fine,meshes/cube.obj", "gone,fine,meshes/none.obj", "out,fine,../../other.obj",
            "away,fine,s3://elsewhere/cube.obj", "http,fine,http://h/x.obj?X-Amz-Signature=verysecret",
            "file,fine,file:///etc/passwd.obj", "empty,,meshes/cube.obj"]  # fmt: skip
    place, out = manifest(shop, *rows), RemotePath(s3) / "out"
    assert main(["check", str(place), "--prior", prior]) == 2
    printed = capsys.readouterr().out
    assert f"{place}:3: mesh: {shop}/meshes/none.obj: there is no such file" in printed
    for row in (4, 5, 6, 7):
        assert re.search(rf"m.csv:{row}: mesh: .*(outside|leaves) the manifest's folder", printed), row
    assert "verysecret" not in printed and "m.csv:8: prompt: it is empty" in printed
    assert run(place, out, prior) == 1
    printed = capsys.readouterr().out
    assert "built 1, 0 up to date, 6 failed" in printed and "verysecret" not in printed
    failure = json.loads(store_of(out).read(out / "gone" / "failure.json")[0])
    assert failure["stage"] == "plan" and "there is no such file" in failure["message"]
    failure = json.loads(store_of(out).read(out / "away" / "failure.json")[0])
    assert failure["stage"] == "manifest" and str(place) in failure["reproduce"]


def test_manifests_that_are_not_there_or_cannot_be_read(s3, prior, capsys):
    assert main(["check", f"{s3}/none.csv"]) == 2
    assert "none.csv: the manifest cannot be read: there is no file at this URL" in capsys.readouterr().out
    assert main(["run", f"{s3}/none.csv", "--prior", prior]) == 2
    assert main(["run", "s3://key:verysecret@b/m.csv", "--prior", prior]) == 2
    told = capsys.readouterr().err
    assert "put credentials into the environment" in told and "verysecret" not in told
    assert main(["status", "nonsense://b/x"]) == 1
    assert "fsspec knows no file system 'nonsense'" in capsys.readouterr().err


def test_a_local_manifest_names_meshes_in_a_bucket_when_allowed_to(shop, tmp_path, prior, capsys):
    path = tmp_path / "m.csv"
    path.write_text(f"id,prompt,mesh\na,fine,{shop}/meshes/cube.obj\n")
    out = tmp_path / "out"
    assert run(path, out, prior) == 1
    assert "give --allow-outside" in capsys.readouterr().out
    assert run(path, out, prior, allow_outside=True) == 0
    assert (out / "a" / "asset.glb").is_file()
    assert not list(input_cache.cache_root().rglob("scratch"))


def test_a_mesh_is_fetched_once_per_node_and_checked_by_its_hash(proxy, s3):
    place = RemotePath(s3) / "cube.obj"
    store_of(place).write(place, CUBE.encode())
    path, sha256 = fetch_mesh(place)
    assert path.read_text() == CUBE and path.name == "cube.obj"
    proxy.seen.clear()
    assert fetch_mesh(place) == (path, sha256)
    assert [method for method, _ in proxy.seen] == ["HEAD"]
    # With its hash known (as it is to workers), no one is asked.
    proxy.seen.clear()
    assert fetch_mesh(place, sha256) == (path, sha256) and not proxy.seen
    # A copy that was changed is not used.
    path.write_text("v 0 0 0\n")
    assert fetch_mesh(place, sha256)[0].read_text() == CUBE
    # What lies there has changed since the plan.
    store_of(place).write(place, b"v 0 0 0\n")
    path.write_text("v 0 0 0\n")
    with pytest.raises(MeshError, match="bytes have changed since the run was planned"):
        fetch_mesh(place, sha256)
    store_of(place).write(place, b"")
    with pytest.raises(MeshError, match="empty file"):
        fetch_mesh(place)


def test_adapters_in_a_bucket_are_fetched_and_their_bytes_decide(shop, s3, prior, capsys, monkeypatch):
    place, out, lora = shop / "m.csv", RemotePath(s3) / "out", shop / "loras" / "toon.safetensors"
    text = "id,prompt,mesh,lora\na,fine,meshes/cube.obj,loras/toon.safetensors:0.5\nb,fine,meshes/cube.obj,\n"
    store_of(place).write(place, text.encode())
    plan = ["plan", str(place), "--out", str(out), "--prior", prior]
    assert main(plan) == 1
    assert f"a\tblocked\tan adapter cannot be used: {lora}: there is no such file" in capsys.readouterr().out
    store_of(lora).write(lora, b"one")
    seen = {}
    toolbox = make_toolbox()

    def recipe(jobs, *rest, **more):
        for job in jobs:
            seen[job.id] = [(file.kind, file.file.local().read_bytes(), file.weight) for file in job.adapters]
        return toolbox.recipe("paint")(jobs, *rest, **more)

    options = RunOptions(manifest=place, out=out, serial=True, lockstep=2, prior=prior)
    assert run_manifest(options, hooks=dataclasses.replace(toolbox, recipe=lambda name: recipe)) == 0
    assert seen == {"a": [("lora", b"one", 0.5)], "b": []}
    capsys.readouterr()
    assert main(plan) == 0 and "2 up to date" in capsys.readouterr().out
    # Another node, and other bytes there.
    monkeypatch.setenv(input_cache.CACHE_VARIABLE, f"{input_cache.cache_root()}-other")
    store_of(lora).write(lora, b"two")
    # They are no LoRA, which the real prior would refuse.
    assert main(plan) == 1 and "a\tblocked\tlora: toon.safetensors: not a safetensors file" in capsys.readouterr().out
    assert run_manifest(dataclasses.replace(options, dry_run=True), hooks=toolbox) == 0
    assert "b\tkeep" in (told := capsys.readouterr().out) and "a\tbuild\t" in told and "lora or concept changed" in told


def test_a_long_plan_lists_the_bucket_once(proxy, s3, monkeypatch):
    out = RemotePath(s3) / "out"
    for name in ("r01", "r05"):
        store_of(out).write(out / name / "record.json", b"{}")
        store_of(out).write(out / name / "asset.glb", b"x")
    ids = [f"r{number:02d}" for number in range(20)]
    alone = dict(snapshot.take_snapshots(out, ids))
    monkeypatch.setattr(snapshot, "WINDOW", 8)
    proxy.seen.clear()
    assert dict(snapshot.take_snapshots(out, ids)) == alone
    assert sorted(alone["r05"].files) == ["asset.glb", "record.json"] and alone["r05"].texts == {"record.json": b"{}"}
    asked = [path.partition("?")[0].rpartition("/")[2] for _, path in proxy.seen]
    assert len(asked) == 3 and asked.count("record.json") == 2
    # Too many files to hold: each row asks for itself.
    monkeypatch.setattr(snapshot, "MAX_LISTED", 3)
    proxy.seen.clear()
    assert dict(snapshot.take_snapshots(out, ids)) == alone and len(proxy.seen) > 20


def test_a_gltf_comes_with_its_buffers(s3):
    from pipeline.mesh.load import load_mesh

    place = RemotePath(s3) / "tri.gltf"
    store_of(place).write(place, json.dumps(CUBE_GLTF).encode())
    with pytest.raises(MeshError, match=r"buffer 'sub/cube%20data\.bin' does not exist"):
        fetch_mesh(place)
    store_of(place).write(place.parent / "sub" / "cube data.bin", TRIANGLE)
    path, sha256 = fetch_mesh(place)
    mesh = load_mesh(path)
    assert mesh.faces.shape == (1, 3) and mesh.source_sha256 == sha256
    store_of(place).write(place.parent / "sub" / "cube data.bin", TRIANGLE[:12] + b"\0\0\0@" + TRIANGLE[16:])
    assert fetch_mesh(place)[1] != sha256
    # A .glb may have its bytes beside it as well.
    binary = place.parent / "tri.glb"
    store_of(place).write(binary, glb_bytes(json.dumps(CUBE_GLTF).encode(), b""))
    path, changed = fetch_mesh(binary)
    assert load_mesh(path).source_sha256 == changed
    store_of(place).write(place.parent / "sub" / "cube data.bin", TRIANGLE)
    assert fetch_mesh(binary)[1] != changed
    for uri in ("../x.bin", "/etc/passwd", "s3://b/x.bin", "a/../../x.bin"):
        store_of(place).write(place, json.dumps(CUBE_GLTF | {"buffers": [{"uri": uri, "byteLength": 42}]}).encode())
        with pytest.raises(MeshError, match="not a plain relative path"):
            fetch_mesh(place)


def test_a_painted_row_in_a_bucket_has_the_bytes_of_a_local_one(shop, s3, s3_server, tmp_path, prior, capfd):
    place, out = manifest(shop, "a,red brick,meshes/cube.obj"), RemotePath(s3) / "out"
    options = ["--prior", prior, "--serial", "--lockstep", "1"]
    for setting in ("steps=2", "texture_size=64", "views=1", "view_size=8"):
        options += ["--set", setting]
    assert main(["run", str(place), "--out", str(out), *options]) == 0, capfd.readouterr()
    assert main(["inspect", str(out / "a"), "--json"]) == 0
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["path"] == f"{out}/a/asset.glb" and told["record"]["inputs"]["mesh"]["name"] == "cube.obj"
    assert main(["inspect", f"{out}/a/asset.glb"]) == 0 and "red brick" in capfd.readouterr().out
    (tmp_path / "meshes").mkdir()
    (tmp_path / "meshes" / "cube.obj").write_text(CUBE)
    (tmp_path / "m.csv").write_text("id,prompt,mesh\na,red brick,meshes/cube.obj\n")
    assert main(["run", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), *options]) == 0
    names = sorted(s3_server.names(f"{s3.removeprefix(f's3://{BUCKET}/')}/out/a"))
    assert names == ["asset.glb", "log.jsonl", "preview.png", "record.json"]
    for name in ("asset.glb", "preview.png"):
        assert publish.read_output(out / "a", name)[0] == (tmp_path / "out" / "a" / name).read_bytes()
    # No credential in anything that was written or printed.
    printed = capfd.readouterr()
    written = [store_of(out).read(out / name)[0].decode("latin-1") for name in store_of(out).files(out)]
    kept = [path.read_bytes().decode("latin-1") for path in Path(input_cache.cache_root()).rglob("*") if path.is_file()]
    for text in (printed.out, printed.err, *written, *kept):
        for secret in (SECRET_KEY, ACCESS_KEY, environment("")["AWS_SECRET_ACCESS_KEY"]):
            assert secret not in text
    assert main(["inspect", f"{out}/none"]) == 1
    assert "there is no file at this URL" in capfd.readouterr().err
