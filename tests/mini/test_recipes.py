"""The notebooks of docs/recipes run, in one kernel one after the other: each would import torch anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "docs" / "recipes").glob("*.ipynb"))


def test_recipes_are_listed():
    listed = (ROOT / "docs" / "recipes" / "index.md").read_text() + (ROOT / "mkdocs.yml").read_text()
    assert len(FILES) >= 7 and not [file.name for file in FILES if listed.count(file.stem) < 2]


def test_recipes_run(tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: make setup")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: make setup")
    pytest.importorskip("ipykernel", reason="needs a kernel: make setup")
    pytest.importorskip("transformers", reason="one of them is about transformers")
    pytest.importorskip("onnxruntime", reason="one of them is about ONNX")
    books = [nbformat.read(file, 4) for file in FILES]
    whole = nbformat.v4.new_notebook(cells=[cell for book in books for cell in book.cells], metadata=books[0].metadata)
    nbclient.NotebookClient(whole, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o["text"] for c in whole.cells for o in c.get("outputs", []) if o.get("name") == "stdout")
    assert "largest difference below 1e-4: True" in printed and "torch.Size([2, 17, 48])" in printed
    assert "3 steps, all finite: True" in printed


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_pages_show_what_the_code_printed_and_nothing_of_a_machine(file):
    cells = json.loads(file.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert cells[0]["cell_type"] == "markdown" and any(cell["outputs"] for cell in code)
    shown = json.dumps([cell["outputs"] for cell in code])
    assert not [word for word in ("/tmp", "/root", "/work", "Warning", "Error") if word in shown]
