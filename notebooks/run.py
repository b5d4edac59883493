"""Runs the notebooks from top to bottom and keeps what they show: python notebooks/run.py [01 04 ...]

Each runs in a kernel of its own and is written back where it lies: its outputs, and nothing that differs from one run
to the next for no reason (times, versions, progress bars, warnings), so that a diff shows what has changed. Where the
repository is, `project.urls.Repository` in pyproject.toml says; badges and install cells are made to agree with it,
by `python notebooks/run.py link` alone without running anything.
Needs nbclient and ipykernel (extra `test`).
"""

import os
import re
import sys
import time
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
NOTEBOOKS = sorted(HERE.glob("[0-9][0-9]_*.ipynb"))
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
BADGE = r"\(https://colab\.research\.google\.com/github/[^)]*\)"


def main(chosen: list[str]) -> None:
    """Executes the notebooks whose names begin with one of `chosen`, or all; a line for each on stdout."""
    for path in NOTEBOOKS:
        if chosen == ["link"]:
            nbformat.write(linked(nbformat.read(path, as_version=4), path.name), path)
            continue
        if chosen and not path.name.startswith(tuple(chosen)):
            continue
        began = time.perf_counter()
        notebook = linked(execute(path), path.name)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.perf_counter() - began:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True)


def execute(path: Path, short: bool = False) -> nbformat.NotebookNode:
    """The notebook with the outputs of this run; `short`: SHORT=1, which makes fewer steps of everything.

    Raises nbclient's CellExecutionError, which shows the cell, where one fails.
    """
    notebook = nbformat.read(path, as_version=4)
    root = str(HERE.parent)
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3"} | ({"SHORT": "1"} if short else {})
    how = {"timeout": None, "kernel_name": "python3", "coalesce_streams": True}
    client = NotebookClient(notebook, **how, resources={"metadata": {"path": str(HERE)}})
    client.execute(env=env)
    return tidy(notebook)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what is noise in a diff; cells are numbered in order."""
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNEL, "language_info": {"name": "python"}})
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"{number:02d}", nbformat.from_dict({})
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), 1):
        cell.execution_count = number
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = number
            if out.output_type in ("display_data", "execute_result"):
                out.metadata = nbformat.from_dict({})
                if {"image/png", "image/jpeg"} & out.data.keys():
                    out.data.pop("text/plain", None)  # holds an address in memory
                if "image/png" in out.data:
                    out.data.pop("image/jpeg", None)  # the same again
    return notebook


def linked(notebook: nbformat.NotebookNode, name: str) -> nbformat.NotebookNode:
    """The notebook whose badge and install cell lead to the repository that pyproject.toml names."""
    url = repository()
    colab = url.replace("https://github.com/", "https://colab.research.google.com/github/")
    for cell in notebook.cells:
        cell.source = re.sub(BADGE, f"({colab}/blob/main/notebooks/{name})", cell.source)
        cell.source = re.sub(r'^REPOSITORY = ".*"', f'REPOSITORY = "{url}"', cell.source, flags=re.M)
    return notebook


def repository() -> str:
    """Where the project is on GitHub, as pyproject.toml says."""
    return tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


if __name__ == "__main__":
    main(sys.argv[1:])
