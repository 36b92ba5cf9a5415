"""Run notebooks from top to bottom, and store their outputs without traces of the machine.

    python notebooks/execute.py notebooks/*.ipynb            # in place, after `make train`
    python notebooks/execute.py --out FOLDER NOTEBOOK ...    # the tests do this

They use the MLflow store of ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the current folder.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
_SECONDS = 1800


def execute(path: Path, working_directory: Path) -> NotebookNode:
    """Run a notebook.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(working_directory)}},
    ).execute()
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out what differs from machine to machine: paths, times, progress and log lines."""
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        cell.outputs = [
            output
            for output in cell.outputs
            if not (output.output_type == "stream" and output.name == "stderr")
        ]
    places = [(str(Path.cwd()), "."), (str(ROOT), "."), (str(Path.home()), "~")]
    text = json.dumps(notebook)
    for place, short in places:
        text = text.replace(place, short)
    # Tables get a random name for their style sheet.
    text = re.sub(r"T_[0-9a-f]{5}", "T_00000", text)
    return nbformat.from_dict(json.loads(text))


def main() -> None:
    """Run the notebooks of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="a folder for the results (default: in place)")
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    for path in arguments.notebooks:
        notebook = clean(execute(path.resolve(), Path.cwd()))
        nbformat.write(notebook, (arguments.out or path.parent) / path.name)
        print(f"{path.name}: done")


if __name__ == "__main__":
    main()
