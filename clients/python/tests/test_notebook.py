"""The notebook of examples/, run as it is, against a real daemon: `go test ./test -run Notebook`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent.parent.parent / "examples" / "cold-starts.ipynb"

pytestmark = pytest.mark.skipif("SKEP_TEST_NOTEBOOK" not in os.environ, reason="needs a daemon: go test ./test -run Notebook")


def test_notebook(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook in the repository has no outputs: clear them"
    NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    tables = "".join(o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {}))
    assert "restore reap" in tables and "restore mmap" in tables
    kept = os.environ["SKEP_TEST_NOTEBOOK"]
    if kept:
        nbformat.write(notebook, kept)  # type: ignore[no-untyped-call]
