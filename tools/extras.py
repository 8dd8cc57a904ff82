"""Are these extras of the project? pip only warns of one that there is not.

python -m tools.extras NAME...
"""

import re
import sys
import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = project["optional-dependencies"]
    unknown = [name for name in sys.argv[1:] if re.sub(r"[-_.]+", "-", name).lower() not in known]
    if unknown:
        sys.exit(f"EXTRAS: no extra {', '.join(unknown)}; there are {', '.join(sorted(known))}")


if __name__ == "__main__":
    main()
