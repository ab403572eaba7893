"""Reads manifests in CSV, JSON and JSON Lines, converts their rows to jobs, and reports every error.

``readers`` yield raw rows, ``schema`` defines the fields of each recipe, ``values`` parses field values, ``rows``
converts a raw row to a Job or to problems, and ``load`` combines them. Everything streams except JSON, which has to be
read whole.
"""

from pipeline.manifest.json_schema import json_schema
from pipeline.manifest.load import Manifest, ManifestStream, ValidatedManifest, load_manifest
from pipeline.manifest.problems import Problem

__all__ = ["Manifest", "ManifestStream", "Problem", "ValidatedManifest", "json_schema", "load_manifest"]
