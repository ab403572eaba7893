"""The command ``latentkiln``. The only room that knows Click.

Nothing heavy is imported before a verb needs it, so that ``--help`` answers at once.
"""

from pipeline.cli.entry_point import DEBUG_VARIABLE, main
from pipeline.cli.verbs import cli

__all__ = ["DEBUG_VARIABLE", "cli", "main"]
