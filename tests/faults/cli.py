"""The console script with the fitters of the tests: `python -m tests.faults.cli convert ...`."""

from __future__ import annotations

import os

# As `main` does; the fitters of the tests load numpy before it.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import tests.faults.fitters  # noqa: F401  (registers them)
from stages.cli import main

if __name__ == "__main__":
    main()
