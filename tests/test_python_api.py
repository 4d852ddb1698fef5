"""The Python API: the page that describes it runs as written, and importing it costs nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lora_rlhf
from lora_rlhf import SFTConfig, UserError, load_run, train_sft
from scripts.make_notebook import NOTEBOOK, notebook

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
HEAVY = ("torch", "transformers", "datasets", "matplotlib", "numpy", "yaml")


@pytest.mark.slow
@pytest.mark.long
def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(cells) >= 8
    names: dict[str, object] = {}
    for number, cell in enumerate(cells, start=1):
        exec(compile(cell, f"docs/python.md, cell {number}", "exec"), names)
    printed = capsys.readouterr()
    assert "runs/notebook/sft" in printed.out
    assert [line[:8] for line in printed.out.splitlines() if re.match(r"\d: score", line)] == [
        f"{step}: score" for step in (1, 2, 3)
    ]
    assert "'policy_vs_sft': '" in printed.out and "('base', 'sft', 'reward', 'policy')" in printed.out
    assert "batch_size is 50, must be a multiple of minibatch_size 8" in printed.out
    assert "it/s" in printed.err or "s/it" in printed.err or "%|" in printed.err, "progress bars"
    assert (tmp_path / "exports" / "notebook" / "config.json").exists()
    assert (tmp_path / "runs" / "notebook" / "report.html").exists()


def test_the_notebook_has_the_cells_of_the_page() -> None:
    assert json.loads(NOTEBOOK.read_text()) == notebook(PAGE.read_text()), "run: python scripts/make_notebook.py"
    codes = [cell["source"] for cell in notebook(PAGE.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(codes) == PAGE.read_text().count("```python")
    for code in codes:
        compile("".join(code), "a cell", "exec")


def test_the_image_has_all_that_its_build_copies() -> None:
    root = PAGE.parents[1]
    copied = re.findall(r"^COPY (.*) \S+$", (root / "Dockerfile").read_text(), re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    let_in = {line[1:] for line in (root / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == let_in and all((root / name).exists() for name in names)


@pytest.mark.slow
def test_every_name_is_there_and_nothing_heavy_is_imported_before_it_is_called() -> None:
    code = (
        "import sys, lora_rlhf; assert not {*sys.argv[1:]} & {*sys.modules};"
        "from lora_rlhf import *; import lora_rlhf as api;"
        "assert all(callable(getattr(api, name)) for name in api.__all__), api.__all__;"
        "assert {*api.__all__} <= {*dir(api)}"
    )
    subprocess.run([sys.executable, "-c", code, *HEAVY], check=True)
    code = "import sys; from lora_rlhf import SFTConfig, train_sft, sample; assert not {*sys.argv[1:]} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code, *HEAVY[:-1]], check=True)


def test_no_module_hides_a_name() -> None:
    """Importing `lora_rlhf.x` sets the attribute `x` of the package, in place of a function of that name."""
    package = Path(lora_rlhf.__file__).parent
    assert [name for name in lora_rlhf.__all__ if (package / name).exists() or (package / f"{name}.py").exists()] == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lora_rlhf' has no attribute 'train_orpo'"):
        lora_rlhf.train_orpo  # noqa: B018
    with pytest.raises(ImportError):
        exec("from lora_rlhf import train_orpo")


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epochs is 0, must be at least 1"):
        train_sft(SFTConfig(run=str(tmp_path), model="tinyworld", demonstrations="d", epochs=0))
    with pytest.raises(UserError, match="neither a run with a finished stage"):
        load_run(tmp_path)
