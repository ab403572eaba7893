"""Settings of all stages: one TOML file for the real run and one for the smoke run."""

from __future__ import annotations

import argparse
import json
import time
import tomllib
from pathlib import Path
from typing import Any


class Settings(dict):
    """The tables of a settings file; `work` is the folder that all stages read and write."""

    work: Path


def load(path: Path, work: Path | None = None) -> Settings:
    """Read a settings file. Relative work folders are relative to the `training` package."""
    with open(path, "rb") as f:
        s = Settings(tomllib.load(f))
    s.work = Path(work) if work else Path(__file__).parent / s["work"]
    s.work.mkdir(parents=True, exist_ok=True)
    return s


def parser(description: str | None) -> argparse.ArgumentParser:
    """The command line of a stage: ``--config`` names its settings file, ``--work`` another work folder."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--config", type=Path, required=True)
    p.add_argument("--work", type=Path)
    return p


class Log:
    """Append-only JSON lines, echoed to standard output."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path

    def __call__(self, **row: Any) -> None:
        row = {"at": time.strftime("%H:%M:%S"), **row}
        text = json.dumps(row)
        with open(self.path, "a") as f:
            f.write(text + "\n")
        print(text, flush=True)
