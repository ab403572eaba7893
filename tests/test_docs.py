"""What the README and the pages under docs/ and manifests/ show: commands that exist, files that are there, a manifest
that can be copied."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import click
import pytest

from pipeline.cli import cli, main
from pipeline.core.backends import BACKENDS
from pipeline.manifest import load_manifest
from pipeline.manifest.schema import FIELDS
from pipeline.prior.words import WORDS_FILE, names_material_alone

ROOT = Path(__file__).parent.parent
# Longest line of the prose; rows of tables and blocks of code may be longer.
WIDTH = 110
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "manifests/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Options of other programs on the pages: of Ray, git, pytest and tests/faults. Click adds --help by itself.
FOREIGN = {
    "--head", "--port", "--node-ip-address", "--metrics-export-port", "--dashboard-host", "--full", "--kind",
    "--generate", "--user", "--unit", "--working-directory", "--defaults", "--depth", "--filter", "--help",
}  # fmt: skip


def commands(text: str) -> list[str]:
    """Every ``latentkiln ...`` in a block or between backticks that goes on with a verb."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE))
    blocks = re.findall(r"^(?:\.venv/bin/)?latentkiln +(.+)$", f"{fenced}\n{indented}", re.MULTILINE)
    return [
        found.split("  #")[0].split(" > ")[0] for found in blocks + re.findall(r"`latentkiln ([a-z][^`\n]*)`", text)
    ]


def options(command: click.Command) -> set[str]:
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return (
        found.union(*(options(part) for part in command.commands.values()))
        if isinstance(command, click.Group)
        else found
    )


def anchors(page: Path) -> set[str]:
    """The names that links give to the headings of ``page``, as on GitHub."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


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
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", text):
        assert "://" in target or (page.parent / target).exists(), target
        if anchor:
            assert anchor in anchors((page.parent / target) if target else page), (target, anchor)
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


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_prose_has_one_width(page: Path) -> None:
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.startswith("```")
        if not fenced and not line.startswith(("|", "    ", "```")):
            assert len(line) <= WIDTH, f"{page.name}:{number}"


def test_the_readme_explains_its_terms_before_the_pages_that_use_them() -> None:
    text = (ROOT / "README.md").read_text()
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections.index("Quick start") < sections.index("Glossary") < sections.index("Documentation")
    glossary = text.split("## Glossary")[1].split("## ")[0]
    terms = re.findall(r"^\| (\w+) \|", glossary, re.MULTILINE)
    assert terms[1:] == ["prior", "manifest", "row", "recipe", "lockstep", "variant"]
    assert {page.name for page in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\]\(docs/([\w-]+\.md)\)", text))


def test_the_quick_start_checks_and_plans_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text()
    (rows,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    shutil.copytree(ROOT / "manifests" / "meshes", tmp_path / "manifests" / "meshes")
    (tmp_path / "manifests" / "shop.csv").write_text(rows)
    monkeypatch.chdir(tmp_path)
    shown = commands(text.split("## Quick start")[1].split("## Glossary")[0])
    assert [command.split()[0] for command in shown[:4]] == ["check", "run", "status", "inspect"]
    assert main(shlex.split(shown[0])) == 0
    # Builds nothing: the tests of the recipes build.
    assert main([*shlex.split(shown[1]), "--dry-run"]) == 0
    assert "would build 2, keep 0" in capsys.readouterr().out


def test_the_quick_start_sets_up_with_targets_of_the_makefile() -> None:
    quick_start = (ROOT / "README.md").read_text().split("## Quick start")[1].split("## Glossary")[0]
    targets = set(re.findall(r"^make ([a-z-]+)$|`make ([a-z-]+)`", quick_start, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"setup", "demo"} <= {name for pair in targets for name in pair}
    for page in PAGES:
        for target in re.findall(r"(?:^|`|    )make ([a-z][a-z-]*)(?=`| *#|$)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page.name, target)


def test_the_picture_of_the_rooms_is_the_one_that_is_tested() -> None:
    tree = (ROOT / "tests" / "test_imports.py").read_text()
    tiers = re.search(r"^TIERS = \(\n(.*?)^\)", tree, re.MULTILINE | re.DOTALL)
    assert tiers
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "pipeline").iterdir()} - {"__init__", "__main__"}
    wanted = [
        names
        for line in re.findall(r"\(([^)]*)\)", tiers[1])
        if (names := [name for name in re.findall(r'"(\w+)"', line) if name in rooms])
    ]
    picture = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    drawn = [[word for word in line[:38].split() if word in rooms] for line in picture.splitlines() if line.strip()]
    assert [sorted(line) for line in drawn] == [sorted(line) for line in wanted]


def test_contributing_has_a_fast_command_for_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rooms = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE))))
    assert rooms >= {path.name for path in (ROOT / "pipeline").iterdir() if (path / "__init__.py").exists()}
    for command in re.findall(r"`\.venv/bin/python -m pytest -q ([^`]+)`", text):
        for path in re.findall(r"tests/[\w./]+", command):
            assert (ROOT / path).exists(), path


def test_comments_name_sections_of_the_method_that_exist() -> None:
    numbers = {int(n) for n in re.findall(r"^## (\d+)\. ", (ROOT / "docs" / "method.md").read_text(), re.MULTILINE)}
    assert numbers == set(range(1, 8))
    named = 0
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        source = path.read_text()
        assert not re.search(r"\bMETHOD\b", source), path
        for first, last in re.findall(r"docs/method\.md, sections? (\d+)(?: to (\d+))?", source):
            assert {int(first), int(last or first)} <= numbers, path
            named += 1
    assert named >= 10


def test_paint_says_truly_which_prompts_are_painted_with_a_material() -> None:
    text = " ".join((ROOT / "docs" / "paint.md").read_text().split())
    folder = ROOT / "pipeline" / "prior" / "embedded"
    painted = re.search(r'So "([^"]+)" is painted with a material, "([^"]+)" and "([^"]+)" by patches', text)
    assert painted and [names_material_alone(folder, prompt) for prompt in painted.groups()] == [True, False, False]
    words = json.loads((folder / WORDS_FILE).read_text())["objects_with_parts"]
    assert f"`objects_with_parts`: {', '.join(words)}," in text


def test_operations_lists_every_choice_of_a_backend() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    listed = set(re.findall(r"^\| `LATENTKILN_([A-Z]+)` \|", text, re.MULTILINE))
    assert {backend.operation.upper() for backend in BACKENDS} == listed
