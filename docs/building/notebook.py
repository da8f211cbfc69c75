"""``python -m docs.building.notebook`` runs the example notebook with the demo's model and keeps outputs.

The site shows these outputs; a test runs the same cells with a tiny model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebook.ipynb"
CELL_SECONDS = 600


def executed(model: Path, folder: Path) -> Any:
    """The notebook after its cells have run in a folder, upon a model's folder.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # the process that a kernel is gets its environment from this one
    os.environ["MODEL"] = str(model.resolve())
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    try:
        return client.execute()
    finally:
        del os.environ["MODEL"]


def main() -> None:
    """Run the cells, and write the notebook with what they show."""
    from demo.__main__ import ensure_model

    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(ensure_model(), Path(folder))
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran
        if cell.cell_type == "code":
            # bars of text and what libraries say belong to the terminal; tests look at them
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "version": ".".join(map(str, sys.version_info[:2]))},
    }
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
