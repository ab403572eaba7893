"""Rows in: manifests in CSV, JSON and JSON Lines become jobs, and every mistake in them is named.

``readers`` turn a file into raw rows, ``schema`` says what a row of each recipe may hold and ``values`` how it is
written, ``rows`` turns a raw row into a Job or into problems, ``load`` puts them together. All of it streams but
JSON, which has to be read whole.
"""

from pipeline.manifest.json_schema import json_schema
from pipeline.manifest.load import Manifest, ManifestStream, ValidatedManifest, load_manifest
from pipeline.manifest.problems import Problem

__all__ = ["Manifest", "ManifestStream", "Problem", "ValidatedManifest", "json_schema", "load_manifest"]
