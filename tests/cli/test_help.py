"""``--help``: options stand under headings, and summaries are imperative."""

from __future__ import annotations

import click
import pytest

from pipeline.cli import cli

HEADINGS = ("Input", "What to build", "Resources", "Resilience", "Output", "Help")


def commands(group: click.Group, path: str = "") -> list[tuple[str, click.Command]]:
    found: list[tuple[str, click.Command]] = []
    for name, command in group.commands.items():
        full = f"{path} {name}".strip()
        found += commands(command, full) if isinstance(command, click.Group) else [(full, command)]
    return found


COMMANDS = commands(cli)
IDS = [name for name, _ in COMMANDS]


def help_text(command: click.Command) -> str:
    return command.get_help(click.Context(command, info_name="x", help_option_names=["-h", "--help"]))


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=IDS)
def test_every_option_stands_once_under_one_heading(name: str, command: click.Command) -> None:
    lines = help_text(command).splitlines()
    shown = [line.removesuffix(":") for line in lines if line.removesuffix(":") in HEADINGS]
    assert shown == [heading for heading in HEADINGS if heading in shown]
    assert shown[-1] == "Help" and lines.count("Options:") == 0
    body = lines[lines.index(f"{shown[0]}:") :]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            flag = parameter.opts[0]
            assert sum(flag in line.split("  ")[1] for line in body if line.startswith("  -")) >= 1, flag


def test_a_run_has_options_under_all_five_headings() -> None:
    (run,) = (command for name, command in COMMANDS if name == "run")
    headings = {option.opts[-1]: getattr(option, "heading", "Help") for option in run.params}
    assert set(headings.values()) >= set(HEADINGS[:-1])
    assert headings["--prior"] == "Input" and headings["--only"] == "What to build"
    assert headings["--lockstep"] == "Resources" and headings["--max-seconds"] == "Resilience"
    assert headings["--out"] == "Output"


@pytest.mark.parametrize(("name", "command"), [*COMMANDS, ("", cli)], ids=[*IDS, "latentkiln"])
def test_summaries_are_imperative_and_not_cut(name: str, command: click.Command) -> None:
    assert command.help
    first = command.help.split("\n\n")[0]
    verb = first.split()[0].rstrip(",")
    # "Says", "Builds": the third person. "Press" and the like would be no verb of ours.
    assert verb[0].isupper() and not verb.endswith("s"), first
    assert not command.get_short_help_str(100).endswith("..."), first
