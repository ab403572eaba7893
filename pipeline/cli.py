"""The command: thin verbs that parse options and call one function each. The only file that knows Click.

Nothing heavy is imported before a verb needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import click

from pipeline import __version__
from pipeline.core.errors import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_ROWS_FAILED,
    EXIT_USAGE,
    LatentkilnError,
    UsageError,
    describe_os_error,
    exit_code_of,
)
from pipeline.core.home import settle
from pipeline.core.location import Location, parse_location
from pipeline.core.redact import redact
from pipeline.core.safe_path import leave_out_current_folder
from pipeline.core.terminal import OutputLost, complain, flush, prepare_streams, shell_join, silence_stdout

DEBUG_VARIABLE = "LATENTKILN_DEBUG"
_FILE = click.Path(path_type=Path)


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


class _Group(click.Group):
    """A group of commands whose help has headings, also in its subgroups."""

    command_class = _GroupedCommand
    group_class = type


_LOCATION = _LocationType()
_LOCKSTEP = _LockstepType(1, 256)
_Command = Callable[..., Any]


def _option(heading: str, *names: str, **settings: Any) -> Callable[[_Command], _Command]:
    shown = settings.pop("show_default", True)
    return click.option(*names, cls=_Option, heading=heading, show_default=shown, **settings)


def _flag(heading: str, *names: str, help: str) -> Callable[[_Command], _Command]:
    return _option(heading, *names, is_flag=True, show_default=False, help=help)


def _overrides(context: click.Context, option: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """``("steps=10", ...)`` as a dict; a repeated key keeps its last value. Raises UsageError."""
    pairs = {}
    for value in values:
        key, equals, text = value.partition("=")
        if not equals or not key.strip():
            raise UsageError(f"--set {value}: not KEY=VALUE; example: --set steps=500")
        pairs[key.strip()] = text.strip()
    return pairs


_out = _option(
    OUTPUT,
    "--out",
    type=_LOCATION,
    default="outputs",
    metavar="DIR|URL",
    help="Write assets to DIR/<id>/ or URL/<id>/.",
)
_prior = _option(
    INPUT,
    "--prior",
    default="embedded",
    metavar="PRIOR",
    help="Use this prior: 'embedded', a diffusers folder, a .safetensors checkpoint, or a hub id (org/name or "
    "org/name@revision).",
)
_download = _option(
    INPUT, "--download/--offline", default=False, help="Download a hub id that is not on this machine, or refuse to."
)
_only = _option(BUILD, "--only", multiple=True, metavar="ID", help="Take only the row with this id; may be repeated.")
_set = _option(
    INPUT,
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_overrides,
    help="Set a field of every row, in place of the manifest's value; may be repeated.",
)
_outside = _flag(INPUT, "--allow-outside", help="Allow meshes outside the manifest's folder.")
_unknown = _flag(
    INPUT, "--allow-unknown", help="Accept prompts in which the prior knows no material, object or colour."
)
_csv = _flag(OUTPUT, "--csv", help="Print CSV, for spreadsheets.")
_json = _flag(OUTPUT, "--json", "json", help="Print JSON instead of text.")


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all well, 1 some rows failed, 2 wrong usage or manifest, 3 interrupted, resumable.",
)
@click.version_option(__version__, prog_name="latentkiln", message="%(prog)s %(version)s")
def cli() -> None:
    """Turn lists of prompts and meshes into finished, textured glTF assets.

    A manifest (CSV, JSON or JSON Lines) names one asset per row:

    \b
        id,prompt,mesh
        brick-boot,a red brick boot,meshes/boot.obj

    \b
    Example:
        latentkiln check shop.csv
        latentkiln run shop.csv --out outputs/shop
        latentkiln inspect outputs/shop/brick-boot/asset.glb
    """


@cli.command()
@click.argument("manifest", type=_LOCATION)
@_prior
@_download
@_set
@_outside
@_unknown
@_only
@_flag(BUILD, "--strict", help="Build nothing if any row is wrong.")
@_flag(BUILD, "--dry-run", help="Show what would be built, and build nothing.")
@_option(
    RESOURCES,
    "--lockstep",
    type=_LOCKSTEP,
    metavar="K",
    help="Optimise K assets per call of the prior. Left out or auto: as many as fit into the GPU's memory, measured by "
    "a probe; 1 without a GPU.",
)
@_option(
    RESOURCES,
    "--workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Start N worker processes. Left out: one per GPU; without a GPU as many as cores and memory allow.",
)
@_option(
    RESOURCES,
    "--gpus-per-worker",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Give each worker this share of a GPU. Left out: measured if --lockstep K is given, else a whole GPU.",
)
@_option(
    RESOURCES, "--address", metavar="RAY", help="Use a running Ray cluster. Left out: start a local one for this run."
)
@_option(
    RESOURCES,
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    help="Set the number format of the prior's UNet. auto: float16 on a GPU; on a CPU float32, or bfloat16 if both the "
    "prior and the CPU are made for it.",
)
@_flag(RESOURCES, "--compile", help="Compile the UNet (slow start, faster steps).")
@_flag(RESOURCES, "--low-memory", help="Keep text encoders and autoencoder in main memory while they are idle.")
@_flag(RESOURCES, "--serial", help="Build in this process, without Ray (to debug).")
@_option(
    RESILIENCE,
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Stop a row after S seconds of wall time, unless the row sets its own limit. Left out: no limit.",
)
@_option(
    RESILIENCE,
    "--max-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="Stop a worker that uses more memory than this. Left out: no limit. No effect with --serial.",
)
@_option(
    RESILIENCE,
    "--checkpoint-seconds",
    type=click.FloatRange(0.1),
    default=30,
    metavar="S",
    help="Save unfinished assets every S seconds: a machine that dies costs at most that much work.",
)
@_flag(RESILIENCE, "--fail-fast", help="Start nothing new after a failed row.")
@_out
@_flag(OUTPUT, "--quiet", "-q", help="Print failures and the last line only.")
@_json
def run(**options: Any) -> int:
    """Build every row of MANIFEST that is not up to date.

    Reports wrong rows and builds the others (exit 1). After Ctrl-C or a crash the same command continues where it
    stopped, and gives the same bytes. MANIFEST and --out may be URLs.

    \b
    Example:
        latentkiln run shop.csv --out outputs/shop --set steps=500 --only brick-boot
        latentkiln run s3://studio/shop.csv --out s3://studio/assets
    """
    from pipeline.commands.run import RunOptions, run_manifest

    return run_manifest(RunOptions(**options))


@cli.command()
@click.argument("manifest", type=_LOCATION, required=False)
@_prior
@_set
@_outside
@_unknown
@_flag(INPUT, "--skip-meshes", help="Do not open the meshes (faster).")
@_flag(OUTPUT, "--schema", help="Print the JSON Schema of manifests, and check nothing.")
@_json
def check(manifest: Location | None, schema: bool, **options: Any) -> int:
    """Check a manifest and list every error.

    Prints one line per error: file:row: field: what is wrong, what is allowed. The row is the line of the file for
    CSV and JSON Lines, the position in the list for JSON. Exit 2 if there is an error. A word of a prompt that the
    prior does not know gives a warning. A prompt in which it knows no word is an error, unless --allow-unknown is
    given. A part of a mesh that the asset will not keep gives a warning.

    \b
    Example:
        latentkiln check shop.csv
        latentkiln check --schema > manifest.schema.json
    """
    from pipeline.commands.check import check as check_manifest
    from pipeline.commands.check import show_schema

    if schema:
        return show_schema()
    if manifest is None:
        raise UsageError("check needs a MANIFEST (or --schema); example: latentkiln check shop.csv")
    return check_manifest(manifest, **options)


@cli.command()
@click.argument("manifest", type=_LOCATION)
@_prior
@_set
@_outside
@_unknown
@_only
@_out
@_csv
@_json
def plan(manifest: Location, **options: Any) -> int:
    """Show what `run` would build, and why.

    Builds nothing. Exit 1 if rows are wrong, 2 if the manifest is.

    \b
    Example:
        latentkiln plan shop.csv --out outputs/shop
    """
    from pipeline.commands.plan import show_plan

    return show_plan(manifest, **options)


@cli.command()
@click.argument("manifest", type=_LOCATION)
@_set
@_outside
@_out
@_flag(OUTPUT, "--yes", help="Delete the listed assets.")
@_json
def clean(manifest: Location, **options: Any) -> int:
    """List assets whose rows are no longer in MANIFEST.

    Deletes them with --yes. Touches only folders that latentkiln wrote, and none that a run is building.

    \b
    Example:
        latentkiln clean shop.csv --out outputs/shop
        latentkiln clean shop.csv --out outputs/shop --yes
    """
    from pipeline.commands.clean import clean as clean_out

    return clean_out(manifest, **options)


@cli.command()
@click.argument("out", type=_LOCATION, default="outputs")
@_flag(
    INPUT,
    "--check",
    help="Compare every asset with its recorded hashes. Exit 1 if rows failed, are missing or damaged.",
)
@_flag(OUTPUT, "--watch", help="Print again every second until the run has ended.")
@_csv
@_json
def status(out: Location, json: bool, csv: bool, watch: bool, check: bool) -> int:
    """Show the progress of the run into OUT, or its result.

    OUT is the folder or URL given to `run` with --out (left out: outputs). An asset that is gone is reported as
    missing, one that changed since it was built as damaged. Exit 0 unless --check is given; with it 1 if rows failed,
    are missing or damaged, else 3 if some are unfinished.

    \b
    Example:
        latentkiln status outputs/shop
        latentkiln status outputs/shop --check
    """
    from pipeline.commands.status import show_status

    return show_status(out, json=json, csv=csv, watch=watch, check=check)


@cli.command()
@click.argument("asset", type=_LOCATION)
@_json
def inspect(asset: Location, json: bool) -> int:
    """Show where ASSET came from.

    ASSET is a .glb that latentkiln wrote or its folder, or the URL of either. Prints its prompt, seed, prior, backends,
    fingerprint and times. Exit 1 if the files differ from the hashes in the record.

    \b
    Example:
        latentkiln inspect outputs/shop/brick-boot/asset.glb
    """
    from pipeline.commands.inspect import inspect_asset

    return inspect_asset(asset, json=json)


@cli.command()
@_prior
@_json
def doctor(prior: str, json: bool) -> int:
    """Show what works on this machine.

    Prints versions, devices, backends with their licences, the prior, and Ray.

    \b
    Example:
        latentkiln doctor
    """
    from pipeline.commands.doctor import doctor as diagnose

    return diagnose(prior=prior, json=json)


@cli.group()
def prior() -> None:
    """Inspect, fetch and try a diffusion prior.

    \b
    Example:
        latentkiln prior show
        latentkiln prior sample "a red brick wall" --out wall.png
        latentkiln prior fetch stable-diffusion-v1-5/stable-diffusion-v1-5
    """


@prior.command("fetch")
@click.argument("prior")
def prior_fetch(prior: str) -> int:
    """Download PRIOR from the Hugging Face hub into this machine's hub cache.

    PRIOR is a hub id with or without a revision. Only configs, tokenizers and safetensors are downloaded. All other
    commands work offline.

    \b
    Example:
        latentkiln prior fetch stable-diffusion-v1-5/stable-diffusion-v1-5@main
    """
    from pipeline.commands.prior import fetch_prior

    return fetch_prior(prior)


@prior.command("fit-rgb")
@click.argument("prior")
@_option(
    BUILD, "--images", type=click.IntRange(8, 10_000), default=48, help="Fit on this many pictures; hold out a quarter."
)
@_json
def prior_fit_rgb(prior: str, images: int, json: bool) -> int:
    """Fit the map from PRIOR's latents to colours.

    SDXL and other autoencoders need it once; SD 1.x and 2.x have a published map. The result is written into the
    prior's folder, or into your cache if that folder is read-only, and becomes part of the prior's identity.

    \b
    Example:
        latentkiln prior fit-rgb priors/sdxl.safetensors
    """
    from pipeline.commands.prior import fit_rgb

    return fit_rgb(prior, images=images, as_json=json)


@prior.command("show")
@click.argument("name", default="embedded", metavar="[PRIOR]")
@_json
def prior_show(name: str, json: bool) -> int:
    """Show a prior's card: constants, sizes, licence, words and identity.

    \b
    Example:
        latentkiln prior show
    """
    from pipeline.commands.prior import show_prior

    return show_prior(name, as_json=json)


@prior.command("sample")
@click.argument("prompt")
@_prior
@_option(BUILD, "--count", type=click.IntRange(1, 64), default=8, help="Draw this many images.")
@_option(
    BUILD,
    "--size",
    type=click.IntRange(16, 2048),
    metavar="PIXELS",
    help="Set the side of an image. Left out: the prior's native size.",
)
@_option(BUILD, "--seed", type=click.IntRange(0), default=0, help="Draw from this seed: same seed, same images.")
@_option(BUILD, "--steps", type=click.IntRange(1, 1000), default=30, help="Take this many denoising steps.")
@_option(
    BUILD,
    "--guidance-scale",
    type=click.FloatRange(0, 1000),
    help="Set the guidance scale: how strongly the prompt steers. Left out: the prior's own scale, or 7.5.",
)
@_option(BUILD, "--negative-prompt", default="", show_default=False, help="Steer away from this text.")
@_option(OUTPUT, "--out", type=_FILE, default="sample.png", metavar="FILE", help="Write the images to this PNG.")
def prior_sample(prompt: str, prior: str, **options: Any) -> int:
    """Draw images of PROMPT with a prior, to see what it knows.

    \b
    Example:
        latentkiln prior sample "white marble with grey veins" --count 2 --seed 7
    """
    from pipeline.commands.prior import sample_prior

    return sample_prior(prior, prompt, **options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code; every error is one line on standard error."""
    if own := arguments is None:
        # Only the command itself may change its process; a caller in Python keeps its settings.
        leave_out_current_folder()
        settle()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    prepare_streams()
    if own:
        # Warnings of libraries may quote an untrusted file.
        warnings.showwarning = _show_warning
    with _signals_as_interrupts():
        code = _run(arguments)
    try:
        flush()
    except OutputLost as lost:
        code = code or _lost(lost, arguments)
        silence_stdout()
    return code


def _run(arguments: list[str]) -> int:
    try:
        result = cli.main(arguments, prog_name="latentkiln", standalone_mode=False)
        return result if isinstance(result, int) else EXIT_OK
    except OutputLost as lost:
        return _lost(lost, arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return EXIT_USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see {context.command_path} --help)" if context else ""
        return _fail(error.format_message() + hint, EXIT_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _fail(_interrupted(arguments), EXIT_INTERRUPTED, word="")
    except LatentkilnError as error:
        code = exit_code_of(error)
        return _fail(error.message, code, word="" if code == EXIT_INTERRUPTED else "error: ")
    except Exception as error:
        return _unexpected(error, arguments)
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            # While Ray starts, it turns the signal into this exception.
            return _fail(_interrupted(arguments), EXIT_INTERRUPTED, word="")
        # Click exits by itself when a pipe breaks.
        return error.code if isinstance(error.code, int) else EXIT_ROWS_FAILED


def _unexpected(error: Exception, arguments: list[str]) -> int:
    """Reports an error that no command expects, of the machine or a bug of ours. Returns the exit code."""
    if os.environ.get(DEBUG_VARIABLE):
        raise error
    if isinstance(error, OSError) and error.strerror:
        try:
            # Click prints help itself, so the error may be one of standard output.
            flush()
        except OutputLost as lost:
            return _lost(lost, arguments)
        # A full disk or a read-only folder is not a bug.
        return _fail(describe_os_error(error), EXIT_ROWS_FAILED)
    if isinstance(error, UnicodeEncodeError):
        advice = "names cannot be written in this locale: set LC_ALL=C.UTF-8, or PYTHONUTF8=1"
        return _fail(f"{error.object!r}: {advice}", EXIT_ROWS_FAILED)
    advice = f"this is a bug; run with {DEBUG_VARIABLE}=1 for the traceback"
    return _fail(f"{type(error).__name__}: {error}; {advice}", EXIT_ROWS_FAILED)


def _lost(lost: OutputLost, arguments: list[str]) -> int:
    """Reports that standard output cannot be written. A run ends as if interrupted; other commands fail."""
    silence_stdout()
    if arguments[:1] == ["run"] and not {"--help", "-h", "--dry-run"} & set(arguments):
        message = f"standard output cannot be written ({lost.reason}); {_interrupted(arguments)}"
        return _fail(message, EXIT_INTERRUPTED, word="")
    if not lost.reader_gone:
        return _fail(f"standard output cannot be written: {lost.reason}", EXIT_ROWS_FAILED)
    # The reader (head, less) stopped reading on purpose: print nothing.
    return EXIT_ROWS_FAILED


def _interrupted(arguments: list[str]) -> str:
    if arguments[:1] == ["run"]:
        return f"interrupted; finished assets are kept; continue with: {redact(shell_join(['latentkiln', *arguments]))}"
    return "interrupted"


def _fail(message: str, code: int, word: str = "error: ") -> int:
    complain(f"latentkiln: {word}{' '.join(message.split())}")
    return code


def _show_warning(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
    complain(f"{category.__name__}: {' '.join(str(message).split())}")


@contextlib.contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP (a closed terminal) end a command as Ctrl-C does. Ignored signals (``nohup``) stay
    ignored."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
