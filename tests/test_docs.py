"""What the README and the pages under docs/ and manifests/ show: commands that exist, files that are there, a manifest
that can be copied."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from pipeline.cli import cli
from pipeline.manifest import load_manifest
from pipeline.manifest.schema import FIELDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "manifests" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Options of the programs that the pages speak of beside ours: Ray's, and those of tests/faults.
FOREIGN = {
    "--head", "--port", "--node-ip-address", "--metrics-export-port", "--dashboard-host", "--full", "--kind",
    "--generate", "--user", "--unit", "--working-directory", "--defaults",
}  # fmt: skip


def commands(text: str) -> list[str]:
    """Every ``latentkiln ...`` in a block or between backticks that goes on with a verb."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE))
    blocks = re.findall(r"^(?:\.venv/bin/)?latentkiln +(.+)$", f"{fenced}\n{indented}", re.MULTILINE)
    return [found.split("  #")[0].split(" > ")[0] for found in blocks + re.findall(r"`latentkiln ([^`\n]+)`", text)]


def options(command: click.Command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return (
        found.union(*(options(part) for part in command.commands.values()))
        if isinstance(command, click.Group)
        else found
    )


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_are_ours(page: Path) -> None:
    text = page.read_text()
    for shown in commands(text):
        words = [word for word in shlex.split(shown) if word not in ("...", "…")]
        command: click.Command = cli
        while isinstance(command, click.Group) and words:
            assert words[0] in command.commands, shown
            command = command.commands[words.pop(0)]
        if words:
            command.make_context("x", words, parent=click.Context(cli))
    known = options(cli) | FOREIGN
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) <= known


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_and_named_programs_are_there(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (page.parent / target).exists(), target
    for program in re.findall(r"`((?:benchmarks|tests|training|pipeline)/[\w./-]+)`", text):
        assert (ROOT / program).exists(), program


@pytest.mark.parametrize("page", ["manifests/README.md", "docs/paint.md"])
def test_fields_in_tables_are_fields(page: str) -> None:
    names = re.findall(r"^\| `([a-z_]+)(?:: [a-z]+)?` \|", (ROOT / page).read_text(), re.MULTILINE)
    assert len(names) > 5 and set(names) <= set(FIELDS)


def test_the_manifest_of_the_readme_is_good_as_it_stands(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    (rows,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    # It says where to save it: among the examples, whose meshes it names.
    assert "manifests/shop.csv" in text
    shutil.copytree(ROOT / "manifests" / "meshes", tmp_path / "meshes")
    (tmp_path / "shop.csv").write_text(rows)
    loaded = load_manifest(tmp_path / "shop.csv")
    assert not loaded.problems and len(loaded.jobs) == loaded.rows == 2
    assert f"inspect outputs/shop/{loaded.jobs[0].id}/asset.glb" in text


def test_the_manifests_that_are_shown_are_good() -> None:
    names = re.findall(r"\]\(([\w.-]+\.(?:csv|json|jsonl))\)", (ROOT / "manifests" / "README.md").read_text())
    assert len(names) >= 4
    for name in names:
        loaded = load_manifest(ROOT / "manifests" / name)
        assert loaded.jobs and not loaded.problems, name
