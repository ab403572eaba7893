"""The verbs: each parses its options and calls one function of ``pipeline.commands``.

A verb imports that function when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from pipeline import __version__
from pipeline.cli.options import (
    BUILD,
    FILE,
    INPUT,
    LOCATION,
    LOCKSTEP,
    OUTPUT,
    RESILIENCE,
    RESOURCES,
    GroupWithHeadings,
    csv_option,
    download_option,
    flag,
    json_option,
    only_option,
    option,
    out_option,
    outside_option,
    prior_option,
    set_option,
    unknown_option,
)
from pipeline.core.errors import UsageError
from pipeline.core.location import Location


@click.group(
    cls=GroupWithHeadings,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 success, 1 some rows failed, 2 wrong usage or unusable manifest, 3 interrupted, resumable.",
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
@click.argument("manifest", type=LOCATION)
@prior_option
@download_option
@set_option
@outside_option
@unknown_option
@only_option
@flag(BUILD, "--strict", help="Build nothing if any row is wrong.")
@flag(BUILD, "--dry-run", help="Show what would be built, and build nothing.")
@option(
    RESOURCES,
    "--lockstep",
    type=LOCKSTEP,
    metavar="K",
    help="Optimise K assets per call of the prior. Default: auto, as many as fit into the GPU's memory, measured by a "
    "probe; 1 without a GPU.",
)
@option(
    RESOURCES,
    "--workers",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Start N worker processes. Default: one per GPU; without a GPU as many as cores and memory allow.",
)
@option(
    RESOURCES,
    "--gpus-per-worker",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="F",
    help="Give each worker this share of a GPU. Default: measured if --lockstep K is given, else a whole GPU.",
)
@option(
    RESOURCES, "--address", metavar="RAY", help="Use a running Ray cluster. Default: start a local one for this run."
)
@option(
    RESOURCES,
    "--precision",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    help="Set the number format of the prior's UNet. auto: float16 on a GPU; on a CPU float32, or bfloat16 if both the "
    "prior and the CPU are made for it.",
)
@flag(RESOURCES, "--compile", help="Compile the UNet (slow start, faster steps).")
@flag(RESOURCES, "--low-memory", help="Keep text encoders and autoencoder in main memory while they are idle.")
@flag(RESOURCES, "--serial", help="Build in this process, without Ray (to debug).")
@option(
    RESILIENCE,
    "--max-seconds",
    type=click.FloatRange(0, min_open=True),
    metavar="S",
    help="Stop a row after S seconds of wall time, unless the row sets its own limit. Default: no limit.",
)
@option(
    RESILIENCE,
    "--max-memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="Stop a worker that uses more memory than this. Default: no limit. No effect with --serial.",
)
@option(
    RESILIENCE,
    "--checkpoint-seconds",
    type=click.FloatRange(0.1),
    default=30,
    metavar="S",
    help="Save unfinished assets every S seconds. If a machine dies, at most that much work is lost.",
)
@flag(RESILIENCE, "--fail-fast", help="Start no further rows after a failed one.")
@out_option
@flag(OUTPUT, "--quiet", "-q", help="Print failures and the last line only.")
@json_option
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
@click.argument("manifest", type=LOCATION, required=False)
@prior_option
@set_option
@outside_option
@unknown_option
@flag(INPUT, "--skip-meshes", help="Do not open the meshes (faster).")
@flag(OUTPUT, "--schema", help="Print the JSON Schema of manifests, and check nothing.")
@json_option
def check(manifest: Location | None, schema: bool, **options: Any) -> int:
    """Check a manifest and list every error.

    Prints one line per error: file:row: field: what is wrong, what is allowed. The row is the line of the file for
    CSV and JSON Lines, and the position in the list for JSON. Exit 2 if there is an error.

    Warns of words that the prior does not know, and of parts of a mesh that the asset will not keep. A prompt without
    any known word is an error, unless --allow-unknown is given.

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
@click.argument("manifest", type=LOCATION)
@prior_option
@set_option
@outside_option
@unknown_option
@only_option
@out_option
@csv_option
@json_option
def plan(manifest: Location, **options: Any) -> int:
    """Show what `run` would build, and why.

    Builds nothing. Exit 1 if rows are wrong, 2 if the manifest is unusable.

    \b
    Example:
        latentkiln plan shop.csv --out outputs/shop
    """
    from pipeline.commands.plan import show_plan

    return show_plan(manifest, **options)


@cli.command()
@click.argument("manifest", type=LOCATION)
@set_option
@outside_option
@out_option
@flag(OUTPUT, "--yes", help="Delete the listed assets.")
@json_option
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
@click.argument("out", type=LOCATION, default="outputs")
@flag(
    INPUT,
    "--check",
    help="Compare every asset with its recorded hashes. Exit 1 if rows failed, are missing or damaged.",
)
@flag(OUTPUT, "--watch", help="Print again every second until the run has ended.")
@csv_option
@json_option
def status(out: Location, json: bool, csv: bool, watch: bool, check: bool) -> int:
    """Show the progress of the run into OUT, or its result.

    OUT is the folder or URL given to `run` with --out (default: outputs). An asset that is gone is reported as
    missing, an asset that changed since it was built as damaged. Exit 0. With --check, exit 1 if rows failed, are
    missing or damaged, else 3 if rows are unfinished.

    \b
    Example:
        latentkiln status outputs/shop
        latentkiln status outputs/shop --check
    """
    from pipeline.commands.status import show_status

    return show_status(out, json=json, csv=csv, watch=watch, check=check)


@cli.command()
@click.argument("asset", type=LOCATION)
@json_option
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
@click.argument("first", type=LOCATION, metavar="A")
@click.argument("second", type=LOCATION, metavar="B")
@json_option
def diff(first: Location, second: Location, json: bool) -> int:
    """Show what differs between the glTF files A and B.

    A and B are .gltf or .glb files, folders of assets, or URLs. Compares nodes, skins, animations, vertices by their
    decoded bytes, materials and images. Exit 0 if at most materials differ: textures, factors, variants, texture
    coordinates that were added, and vertices that were split for them. Exit 1 if anything else does, 2 if a file cannot
    be read.

    \b
    Example:
        latentkiln diff meshes/robot.glb outputs/shop/robot/asset.glb
    """
    from pipeline.commands.diff import diff_assets

    return diff_assets(first, second, json=json)


@cli.command()
@prior_option
@json_option
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
    """Download PRIOR from the Hugging Face hub.

    PRIOR is a hub id with or without a revision. Configs, tokenizers and safetensors are downloaded into this machine's
    hub cache. All other commands work offline.

    \b
    Example:
        latentkiln prior fetch stable-diffusion-v1-5/stable-diffusion-v1-5@main
    """
    from pipeline.commands.prior import fetch_prior

    return fetch_prior(prior)


@prior.command("fit-rgb")
@click.argument("prior")
@option(
    BUILD,
    "--images",
    type=click.IntRange(8, 10_000),
    default=48,
    metavar="N",
    help="Fit on N pictures, of which a quarter is held out.",
)
@json_option
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
@json_option
def prior_show(name: str, json: bool) -> int:
    """Show a prior's constants, words, licence and identity.

    \b
    Example:
        latentkiln prior show
    """
    from pipeline.commands.prior import show_prior

    return show_prior(name, as_json=json)


@prior.command("sample")
@click.argument("prompt")
@prior_option
@option(BUILD, "--count", type=click.IntRange(1, 64), default=8, metavar="N", help="Draw this many images.")
@option(
    BUILD,
    "--size",
    type=click.IntRange(16, 2048),
    metavar="PIXELS",
    help="Set the side of an image. Default: the prior's native size.",
)
@option(
    BUILD,
    "--seed",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="Draw with this seed. The same seed gives the same images.",
)
@option(BUILD, "--steps", type=click.IntRange(1, 1000), default=30, metavar="N", help="Take this many denoising steps.")
@option(
    BUILD,
    "--guidance-scale",
    type=click.FloatRange(0, 1000),
    metavar="SCALE",
    help="Set the guidance scale, the influence of the prompt. Default: the prior's own scale, or 7.5.",
)
@option(BUILD, "--negative-prompt", default="", metavar="TEXT", show_default=False, help="Steer away from TEXT.")
@option(OUTPUT, "--out", type=FILE, default="sample.png", metavar="FILE", help="Write the images to this PNG.")
def prior_sample(prompt: str, prior: str, **options: Any) -> int:
    """Draw images of PROMPT with a prior, to test its knowledge.

    \b
    Example:
        latentkiln prior sample "white marble with grey veins" --count 2 --seed 7
    """
    from pipeline.commands.prior import sample_prior

    return sample_prior(prior, prompt, **options)
