"""The console script with the fitters of the tests: `python -m tests.faults.cli convert ...`."""

from __future__ import annotations

import tests.faults.fitters  # noqa: F401  (registers them)
from stages.cli import main

if __name__ == "__main__":
    main()
