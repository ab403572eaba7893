"""``python -m pipeline`` is ``latentkiln``."""

import sys

from pipeline.core.safe_path import leave_out_current_folder

# Before anything else is imported: Python itself puts the current folder first.
leave_out_current_folder()

from pipeline.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
