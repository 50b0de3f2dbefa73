"""Print what to install for an extra of pyproject.toml, the package left out: requirements.py EXTRA."""

import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import pip._vendor.tomli as tomllib


def requirements(extra: str) -> list[str]:
    """The package's own dependencies and those of `extra`, with references to other extras resolved."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        reference = re.fullmatch(r"cbin-nn\[([\w,-]+)\]", requirement)
        if reference:
            for name in reference.group(1).split(","):
                found += requirements(name)
        else:
            found.append(requirement)
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
