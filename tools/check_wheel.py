"""Check what `make wheel` built: one wheel, small enough, for every Python from 3.11 on."""

from __future__ import annotations

import sys
from pathlib import Path
from zipfile import ZipFile

REQUIRED = ("rnncore/__init__.py", "rnncore/_core.pyi", "rnncore/py.typed")


def main(folder: str, limit: str) -> str | None:
    """Return what is wrong with the wheel in `folder`, None when nothing is."""
    wheels = list(Path(folder).glob("*.whl"))
    if len(wheels) != 1:
        return f"expected one wheel in {folder}, found {len(wheels)}"
    wheel = wheels[0]
    size = wheel.stat().st_size
    print(f"{wheel.name}: {size:,} bytes of at most {int(limit):,}")
    if size > int(limit):
        return "the wheel is too large"
    if "-cp311-abi3-" not in wheel.name:
        return "expected a wheel for the stable ABI of Python 3.11"
    names = ZipFile(wheel).namelist()
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        return f"the wheel lacks {', '.join(missing)}"
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
