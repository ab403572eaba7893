"""Rows in: manifests in CSV, JSON and JSON Lines become jobs, and every mistake in them is named.

``readers`` turn a file into raw rows, ``schema`` says what a row may hold, ``rows`` turns a raw row into a Job or
into problems, ``load`` puts them together. All of it streams but JSON, which has to be read whole.
"""

from pipeline.manifest.load import Manifest, ManifestStream, load_manifest
from pipeline.manifest.problems import Problem
from pipeline.manifest.schema import json_schema

__all__ = ["Manifest", "ManifestStream", "Problem", "json_schema", "load_manifest"]
