"""What is built to be installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent

pytest.importorskip("hatch_vcs", reason="needs hatch-vcs: pip install './clients/python[test]'")


def test_wheel(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=HERE, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("skep-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        (metadata,) = [z.read(n).decode() for n in names if n.endswith("METADATA")]
    assert {"skep/py.typed", "skep/models.py", "skep/operations.py", "skep/client.py"} <= set(names)
    assert not [n for n in names if n.startswith("tests")]
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert required == ["Requires-Dist: httpx<1,>=0.27"]
