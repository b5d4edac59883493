"""The notebooks: what is kept of them is whole, small and free of noise, and each runs from top to bottom."""

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed (extra `test`)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra `test`)")

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("notebooks_run", ROOT / "notebooks" / "run.py")
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)

LONG = ("02", "03", "04")  # more than 20 s each: `make slow` runs these
BYTES = 700_000  # of a notebook: a repository keeps every version of it


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_five():
    assert [path.name[:2] for path in run.NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", run.NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_kept_is_whole_small_and_without_noise(path):
    text = path.read_text()
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(text) < BYTES
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    assert "error" not in {out.output_type for out in outputs}
    kinds = [kind for out in outputs for kind in out.get("data", {})]
    assert {"image/png", "image/jpeg"} & set(kinds), "run `make notebooks`: no picture was kept"
    assert text.rstrip("\n") == nbformat.writes(run.linked(run.tidy(notebook), path.name)).rstrip("\n")


def test_one_install_cell_and_badges_that_lead_to_the_notebook():
    cells = set()
    for path in run.NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        cells.add(re.sub(r'^EXTRAS = ".*"$', "", code(notebook)[0].source, flags=re.M))
        assert notebook.cells[0].source.count(f"/blob/main/notebooks/{path.name})") == 1
    (cell,) = cells
    assert f'REPOSITORY = "{run.repository()}"' in cell


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=pytest.mark.slow if p.name.startswith(LONG) else ()) for p in run.NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_it_runs_from_top_to_bottom(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device, as people have
    kept, made = nbformat.read(path, as_version=4), run.execute(path, short=True)
    kinds = lambda cell: {kind for out in cell.outputs for kind in out.get("data", {})}
    assert [cell.source for cell in made.cells] == [cell.source for cell in kept.cells]
    assert [kinds(cell) for cell in code(made)] == [kinds(cell) for cell in code(kept)]
