"""Plans: the fingerprint is pinned, each reason is said in words, and damage is found."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from thirty_bad_rows import write_tetrahedron, write_thirty

from pipeline import cli
from pipeline import plan as plan_module
from pipeline.core.hashing import sha256_bytes, sha256_file
from pipeline.core.job import Job, RowLocation
from pipeline.core.location import InputFile
from pipeline.export.record import write_failure, write_record
from pipeline.manifest import load_manifest
from pipeline.plan import FileHashes, PlanItem, fingerprint, iterate, leftovers, plan
from pipeline.recipes import RECIPE_VERSIONS

PRIOR = "5" * 64


@pytest.fixture
def job(tmp_path: Path) -> Job:
    mesh = write_tetrahedron(tmp_path / "meshes/a.obj")
    settings = {"steps": 20, "guidance_scale": None, "preview": True, "fov": 60.0, "max_faces": 1000}
    return Job("boot", "paint", "a red brick", "blurry", 7, InputFile(mesh), settings, RowLocation("m.csv", 2))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def one(job: Job, out: Path, prior: str = PRIOR) -> PlanItem:
    (item,) = plan([job], out, prior_identity=prior)
    assert item.job == job
    return item


def build(job: Job, out: Path, **changes: Any) -> Path:
    """Leaves what a finished build of ``job`` leaves; gives its folder."""
    folder = out / job.id
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {}
    for name, data in (("asset.glb", b"glTF " + job.id.encode()), ("preview.png", b"PNG")):
        (folder / name).write_bytes(data)
        outputs[name] = {"sha256": sha256_bytes(data), "bytes": len(data)}
    assert job.mesh is not None
    inputs = {
        "job": {"prompt": job.prompt, "negative_prompt": job.negative_prompt, "seed": job.seed},
        "mesh": {"name": job.mesh.name, "sha256": sha256_file(job.mesh.local())},
        "prior": {"name": "p", "identity": PRIOR},
    }
    inputs["job"]["settings"] = dict(job.settings)
    record = {"id": job.id, "recipe": "paint", "recipe_version": RECIPE_VERSIONS["paint"], "inputs": inputs}
    record |= {"fingerprint": one(job, out).fingerprint, "outputs": outputs, **changes}
    write_record(folder, record)
    return folder


def changed(job: Job, **changes: Any) -> Job:
    settings = {**job.settings, **changes.pop("settings", {})}
    return dataclasses.replace(job, settings=settings, **changes)


# --- the fingerprint


def test_the_fingerprint_is_pinned(job: Job) -> None:
    # Literal on purpose: a change of these digests rebuilds every asset that anyone has.
    given = {"prior_identity": PRIOR, "recipe_version": "1", "mesh_sha256": "a" * 64}
    assert fingerprint(job, **given) == "2b11d6cfdbdc2156cc2af31e9186e76ede491378d8ecb50a1027c9996bbdef74"
    plain = Job("x", "paint", "weiße Fliesen", "", 0, None, {})
    assert fingerprint(plain, **given) == "848705a0f3bb0bb22364cbc0dc066d28ef72d66d6046cf28e39f5360dce1f9aa"


def test_everything_that_decides_the_asset_is_in_the_fingerprint(job: Job) -> None:
    base = {"prior_identity": PRIOR, "recipe_version": "1", "mesh_sha256": "a" * 64}
    marks = {fingerprint(job, **base)}
    variants = [changed(job, **change) for change in ({"prompt": "b"}, {"negative_prompt": ""}, {"seed": 8})]
    variants += [changed(job, settings=change) for change in ({"steps": 21}, {"preview": False}, {"guidance_scale": 7})]
    variants += [changed(job, settings={"a_new_one": 1}), changed(job, recipe="generate")]
    marks |= {fingerprint(variant, **base) for variant in variants}
    marks |= {fingerprint(job, **{**base, key: "b"}) for key in base}
    assert len(marks) == 1 + len(variants) + len(base)


def test_what_does_not_decide_the_asset_is_not_in_the_fingerprint(job: Job, tmp_path: Path) -> None:
    base = {"prior_identity": PRIOR, "recipe_version": "1", "mesh_sha256": "a" * 64}
    mark = fingerprint(job, **base)
    for same in (
        changed(job, id="shoe"),
        changed(job, mesh=InputFile(tmp_path / "elsewhere.obj")),
        changed(job, row_location=RowLocation("other.json", 9)),
        changed(job, settings={"max_faces": 2000}),
        changed(job, settings={"fov": 60, "steps": 20.0}),
        dataclasses.replace(job, settings=dict(reversed(job.settings.items()))),
    ):
        assert fingerprint(same, **base) == mark


# --- each reason


def test_new_then_up_to_date(job: Job, out: Path) -> None:
    item = one(job, out)
    assert (item.action, item.reason) == ("build", "new") and len(item.fingerprint) == 64
    assert not out.exists()
    build(job, out)
    kept = one(job, out)
    assert (kept.action, kept.reason, kept.fingerprint) == ("keep", "up to date", item.fingerprint)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": "a blue brick"}, "prompt changed"),
        ({"negative_prompt": ""}, "negative prompt changed"),
        ({"seed": 8}, "seed changed from 7 to 8"),
        ({"settings": {"steps": 30}}, "steps changed from 20 to 30"),
        ({"settings": {"preview": False}}, "preview changed from true to false"),
        ({"settings": {"guidance_scale": 7.5}}, "guidance_scale changed from the prior's to 7.5"),
        ({"settings": {"brand_new": 1}}, "brand_new is a new setting"),
        (
            {"prompt": "b", "seed": 1, "settings": {"fov": 50.5}},
            "prompt changed; seed changed from 7 to 1; fov changed from 60 to 50.5",
        ),
    ],
)
def test_a_change_of_the_row(changes: dict[str, Any], reason: str, job: Job, out: Path) -> None:
    build(job, out)
    item = one(changed(job, **changes), out)
    assert (item.action, item.reason) == ("build", reason)


def test_changed_mesh_bytes(job: Job, out: Path) -> None:
    build(job, out)
    assert job.mesh is not None
    write_tetrahedron(job.mesh.local(), 2.0)
    assert one(job, out).reason == "mesh bytes changed"


def test_another_prior(job: Job, out: Path) -> None:
    build(job, out)
    assert one(job, out, prior="6" * 64).reason == "prior changed"


def test_another_recipe_version(job: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(job, out)
    now = RECIPE_VERSIONS["paint"]
    monkeypatch.setitem(RECIPE_VERSIONS, "paint", "99")
    assert one(job, out).reason == f"recipe version changed from {now} to 99"


def test_a_setting_that_is_gone(job: Job, out: Path) -> None:
    build(changed(job, settings={"old_one": 1}), out)
    assert one(job, out).reason == "old_one is no longer a setting"


def test_a_raised_limit_rebuilds_nothing(job: Job, out: Path) -> None:
    build(job, out)
    assert one(changed(job, settings={"max_faces": 5000}), out).action == "keep"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "asset.glb").unlink(), "asset.glb is missing"),
        (lambda folder: (folder / "preview.png").unlink(), "preview.png is missing"),
        (lambda folder: (folder / "asset.glb").write_bytes(b"longer than it was before"), "not have its recorded size"),
        (lambda folder: (folder / "asset.glb").write_bytes(b"glTF BOOT"), "recorded hash"),
    ],
)
def test_damaged_outputs(damage: Any, reason: str, job: Job, out: Path) -> None:
    folder = build(job, out)
    assert one(job, out).action == "keep"
    damage(folder)
    item = one(job, out)
    assert item.action == "build"
    assert item.reason.startswith("output missing or damaged: ") and reason in item.reason


def test_a_record_without_outputs_keeps_nothing(job: Job, out: Path) -> None:
    build(job, out, outputs={})
    assert "names no outputs" in one(job, out).reason


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "status": "done"}'])
def test_a_damaged_record(text: str, job: Job, out: Path) -> None:
    folder = build(job, out)
    (folder / "record.json").write_text(text)
    item = one(job, out)
    assert item.action == "build" and item.reason.startswith("the record is damaged (")
    assert "\n" not in item.reason


@pytest.mark.parametrize(
    "inputs", [None, 7, {}, {"job": 7}, {"job": {}, "mesh": [], "prior": 1}, {"job": {"settings": 3}}]
)
def test_a_record_of_odd_inputs_is_rebuilt(inputs: Any, job: Job, out: Path) -> None:
    build(job, out, fingerprint="0" * 64, inputs=inputs)
    assert one(job, out).action == "build"


def test_a_folder_without_a_record_is_the_remains_of_a_crash(job: Job, out: Path) -> None:
    folder = build(job, out)
    (folder / "record.json").unlink()
    assert one(job, out).reason == "new"


def failure(job: Job, out: Path, mark: str, message: str = "x.obj: no\nfaces") -> None:
    (out / job.id).mkdir(parents=True, exist_ok=True)
    write_failure(out / job.id, {"id": job.id, "fingerprint": mark, "stage": "load", "message": message})


def test_a_row_that_failed_is_tried_again(job: Job, out: Path) -> None:
    failure(job, out, one(job, out).fingerprint)
    item = one(job, out)
    assert (item.action, item.reason) == ("build", "failed before: x.obj: no faces")


def test_a_failed_change_of_a_good_asset(job: Job, out: Path) -> None:
    build(job, out)
    other = changed(job, prompt="b")
    failure(other, out, one(other, out).fingerprint)
    assert one(other, out).reason == "prompt changed; failed before: x.obj: no faces"
    # The good asset is still what the old row asks for.
    assert one(job, out).action == "keep"


def test_a_long_failure_is_cut(job: Job, out: Path) -> None:
    failure(job, out, "", "\x1b[31m" + "x" * 10_000)
    reason = one(job, out).reason
    assert len(reason) < 300 and reason.isprintable()


def test_blocked_rows(job: Job, out: Path, tmp_path: Path) -> None:
    gone = one(changed(job, mesh=InputFile(tmp_path / "no.obj")), out)
    assert (gone.action, gone.fingerprint) == ("blocked", "")
    assert gone.reason == "the mesh cannot be read: No such file or directory"
    out.mkdir()
    (out / "boot").write_text("a file in the way")
    assert (one(job, out).action, one(job, out).reason) == ("blocked", f"{out / 'boot'} is not a folder; remove it")
    (out / "boot").unlink()
    os.symlink(tmp_path, out / "boot")
    assert one(job, out).action == "blocked" and "leaves the output folder" in one(job, out).reason
    (out / "boot").unlink()
    os.symlink(out / "elsewhere", out / "boot")
    assert one(job, out).reason == f"{out / 'boot'} is a link that does not lead to a folder; remove it"
    (out / "elsewhere").mkdir()
    assert one(job, out).reason == "new"
    # The output folder itself may be no folder.
    assert one(job, tmp_path / "meshes/a.obj").reason.endswith("cannot be used: Not a directory")


def test_a_folder_of_other_files_is_not_built_into(job: Job, out: Path, tmp_path: Path) -> None:
    # As where --out is the manifest's own folder, and a row is called like the folder of its meshes.
    (out / "boot").mkdir(parents=True)
    assert one(job, out).reason == "new"
    (out / "boot" / "boot.obj").write_text("v")
    item = one(job, out)
    assert item.action == "blocked"
    assert item.reason.startswith(
        f"{out / 'boot'} contains files that do not belong to an asset (boot.obj); choose another id"
    )
    assert item.foreign and one(changed(job, mesh=InputFile(tmp_path / "no.obj")), out).foreign
    # Also when that was told before.
    write_failure(out / "boot", {"id": "boot", "fingerprint": item.fingerprint})
    assert one(job, out) == item
    # What lies beside an asset of ours is its owner's business.
    build(job, out)
    assert one(job, out).action == "keep"


def test_a_gltf_with_a_missing_buffer_is_blocked_and_its_buffers_count(job: Job, out: Path, tmp_path: Path) -> None:
    path = tmp_path / "meshes/box.gltf"
    path.write_text(json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "box.bin", "byteLength": 4}]}))
    boxed = changed(job, mesh=InputFile(path))
    assert one(boxed, out).action == "blocked"
    (tmp_path / "meshes/box.bin").write_bytes(b"1234")
    first = one(boxed, out)
    (tmp_path / "meshes/box.bin").write_bytes(b"1235")
    assert first.action == "build" and one(boxed, out).fingerprint != first.fingerprint


def test_one_row_never_stops_another(job: Job, out: Path, tmp_path: Path) -> None:
    jobs = [changed(job, id="a"), changed(job, id="b", mesh=InputFile(tmp_path / "no.obj")), changed(job, id="c")]
    build(jobs[2], out)
    assert [item.action for item in plan(jobs, out, prior_identity=PRIOR)] == ["build", "blocked", "keep"]
    assert next(iter(iterate(jobs, out, prior_identity=PRIOR))).job.id == "a"


def test_meshes_and_outputs_are_hashed_once(job: Job, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [changed(job, id=f"r{n}") for n in range(20)]
    for each in jobs:
        build(each, out)
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(plan_module, "mesh_sha256", counting)
    monkeypatch.setattr("pipeline.export.record.sha256_file", counting)
    hashes = FileHashes()
    for _ in range(3):
        assert {item.action for item in plan(jobs, out, prior_identity=PRIOR, hashes=hashes)} == {"keep"}
    assert hashed.count("a.obj") == 1
    assert hashed.count("asset.glb") == len(jobs)


# --- leftovers and the command


def test_leftovers_are_folders_whose_rows_are_gone(job: Job, out: Path) -> None:
    def gone(*ids: str) -> list[str]:
        return [name for name, _ in leftovers(out, lambda name: name.lower() in ids)]

    assert gone("boot") == []
    build(job, out)
    build(changed(job, id="Old"), out)
    (out / "not-an-asset").mkdir()
    (out / "run.json").write_text("{}")
    assert gone("boot") == ["Old"]
    assert gone("boot", "old") == []
    # Rows that failed, or were interrupted, leave folders, too.
    write_failure(out / "bad", {"id": "bad", "fingerprint": ""})
    (out / "half" / ".work" / "0").mkdir(parents=True)
    (out / "half" / "log.jsonl").touch()
    (out / "mine" / ".work").mkdir(parents=True)
    (out / "mine" / "thesis.txt").touch()
    (out / "logs").mkdir()
    (out / "logs" / "log.jsonl").touch()
    shutil.copytree(out / "boot", out / "copy")  # its record names another
    assert gone("boot", "old") == ["bad", "half"]


@pytest.fixture
def prior(tmp_path: Path) -> Path:
    folder = tmp_path / "prior"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    return folder


def test_plan_prints_a_line_for_each_row(tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_thirty(tmp_path)
    out = tmp_path / "out"
    arguments = ["plan", str(manifest), "--out", str(out), "--prior", str(prior)]
    assert cli.main(arguments) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 36 and lines[-1] == "5 to build, 30 wrong"
    assert lines[0] == "good-0\tbuild\tnew"
    assert lines[1].startswith("row 3\twrong\tid: '../escape' is not a safe file name")
    assert not out.exists()


def test_plan_in_every_state(tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    write_tetrahedron(tmp_path / "a.obj")
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,prompt,mesh\none,x,a.obj\ntwo,x,a.obj\n")
    arguments = ["plan", str(manifest), "--out", str(out), "--prior", str(prior)]
    from pipeline.prior.identity import prior_identity

    for item in plan(load_manifest(manifest).jobs, out, prior_identity=prior_identity(prior).identity):
        build(item.job, out, fingerprint=item.fingerprint)
    shutil.copytree(out / "one", out / "gone")
    record = json.loads((out / "gone" / "record.json").read_text())
    (out / "gone" / "record.json").write_text(json.dumps(record | {"id": "gone"}))
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        "one\tkeep\tup to date",
        "two\tkeep\tup to date",
        "gone\tgone\tnot in the manifest; kept until 'latentkiln clean'",
        "2 up to date, 1 not in the manifest",
    ]
    manifest.write_text("id,prompt,mesh\none,y,a.obj\ntwo,x,a.obj\n")
    assert cli.main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["id"], row["action"]) for row in result["rows"]] == [("one", "build"), ("two", "keep")]
    assert "prompt changed" in result["rows"][0]["reason"]
    assert result["not_in_manifest"] == ["gone"]
    assert result["counts"] == {"build": 1, "keep": 1, "blocked": 0, "wrong": 0, "gone": 1}
    # --only leaves the other rows out, but does not call them gone.
    assert cli.main([*arguments, "--only", "two"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "1 up to date, 1 not in the manifest"
    assert (out / "gone" / "record.json").exists()


def test_plan_on_a_terminal_is_a_table(
    tmp_path: Path, prior: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tetrahedron(tmp_path / "a.obj")
    manifest = tmp_path / "m.csv"
    manifest.write_text("id,prompt,mesh\none,[red]x[/],a.obj\n")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cli.main(["plan", str(manifest), "--out", str(tmp_path / "out"), "--prior", str(prior)]) == 0
    printed = capsys.readouterr().out
    assert "action" in printed and "one" in printed and "\t" not in printed
