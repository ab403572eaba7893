"""Types and options that verbs share, and help with options under headings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from pipeline.core.errors import UsageError
from pipeline.core.location import Location, parse_location

FILE = click.Path(path_type=Path)


class _LocationType(click.ParamType):
    """A path, or a URL that fsspec can open."""

    name = "path or URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Location:
        if isinstance(value, str) and not value:
            # An unset shell variable gives an empty argument, which as a path would be the current folder.
            self.fail("it is empty; name a path or URL", param, ctx)
        return parse_location(value) if isinstance(value, str) else value


class _LockstepType(click.IntRange):
    """A whole number, or ``auto``, which becomes None."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == "auto" else super().convert(value, param, ctx)


# The headings under which --help groups options, in the order in which they are printed.
INPUT, BUILD, RESOURCES, RESILIENCE, OUTPUT = ("Input", "What to build", "Resources", "Resilience", "Output")
_HEADINGS = (INPUT, BUILD, RESOURCES, RESILIENCE, OUTPUT, "Help")


class _Option(click.Option):
    """An option with the heading under which ``--help`` prints it."""

    def __init__(self, *names: Any, heading: str, **settings: Any):
        super().__init__(*names, **settings)
        self.heading = heading


class _GroupedCommand(click.Command):
    """A command whose help prints its options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per heading that has options."""
        sections: dict[str, list[tuple[str, str]]] = {heading: [] for heading in _HEADINGS}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections[getattr(parameter, "heading", "Help")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class GroupWithHeadings(click.Group):
    """A group of commands whose help has headings, also in its subgroups."""

    command_class = _GroupedCommand
    group_class = type


LOCATION = _LocationType()
LOCKSTEP = _LockstepType(1, 256)
CommandFunction = Callable[..., Any]


def option(heading: str, *names: str, **settings: Any) -> Callable[[CommandFunction], CommandFunction]:
    shown = settings.pop("show_default", True)
    return click.option(*names, cls=_Option, heading=heading, show_default=shown, **settings)


def flag(heading: str, *names: str, help: str) -> Callable[[CommandFunction], CommandFunction]:
    return option(heading, *names, is_flag=True, show_default=False, help=help)


def _overrides(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """``("steps=10", ...)`` as a dict; a repeated key keeps its last value. Raises UsageError."""
    pairs = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {value}: not KEY=VALUE; example: --set steps=500")
        pairs[key.strip()] = text.strip()
    return pairs


out_option = option(
    OUTPUT,
    "--out",
    type=LOCATION,
    default="outputs",
    metavar="DIR|URL",
    help="Write assets to DIR/<id>/ or URL/<id>/.",
)
prior_option = option(
    INPUT,
    "--prior",
    default="embedded",
    metavar="PRIOR",
    help="Use this prior: 'embedded', a diffusers folder, a .safetensors checkpoint, or a hub id (org/name or "
    "org/name@revision).",
)
download_option = option(
    INPUT,
    "--download/--offline",
    default=False,
    help="Download a hub id that is missing on this machine, or never download.",
)
only_option = option(
    BUILD, "--only", multiple=True, metavar="ID", help="Take only the row with this id; may be repeated."
)
set_option = option(
    INPUT,
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_overrides,
    help="Override a field in all rows; may be repeated.",
)
outside_option = flag(INPUT, "--allow-outside", help="Allow meshes outside the manifest's folder.")
unknown_option = flag(
    INPUT, "--allow-unknown", help="Accept prompts in which the prior knows no material, object or colour."
)
csv_option = flag(OUTPUT, "--csv", help="Print CSV, for spreadsheets.")
json_option = flag(OUTPUT, "--json", "json", help="Print JSON instead of text.")
