"""The house rules: who may import whom, what each module says of itself, how long it is. Read from the source alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import lora_rlhf_demo
import pytest

import lora_rlhf

PACKAGE, DEMO = Path(lora_rlhf.__file__).parent, Path(lora_rlhf_demo.__file__).parent
MODULES = [*sorted(PACKAGE.rglob("*.py")), *sorted(DEMO.rglob("*.py"))]

# No room has the name of a function of the Python API: importing the room would hide the function.
# Each room, and the rooms of this package that it may import: strictly downward, read from top to bottom.
# `algo` stands alone: it may not even raise errors of ours.
MAY_IMPORT: dict[str, set[str]] = {
    "system": set(),
    "render": {"system"},
    "algo": set(),
    "configs": {"system"},
    "data": {"system"},
    "stats": {"system", "algo", "data"},
    "runs": {"system", "render", "configs", "data"},
    "model": {"system", "algo"},
    "rewards": {"system", "configs"},
    "judges": {"system", "configs", "runs", "stats", "data", "model"},
    "stages": {"system", "configs", "runs", "algo", "stats", "data", "model", "rewards", "judges"},
    "probes": {"system", "configs", "runs", "stats", "data"},
    "evaluation": {"system", "render", "configs", "runs", "algo", "stats", "data", "model", "judges", "probes"},
    "release": {"system", "render", "configs", "runs", "data", "evaluation"},
    "inspection": {"system", "render", "configs", "runs", "data", "model", "stages"},
    "tinyworld": {"system", "configs", "data", "probes"},
    "doctor": {"system", "data"},
    "plan": {"system", "configs", "algo", "model"},
    "exporting": {"system", "render", "configs", "runs", "algo", "data", "model", "evaluation"},
    "chat": {"system", "configs", "runs", "data", "model"},
    "demo": {
        "system",
        "render",
        "configs",
        "runs",
        "algo",
        "stats",
        "data",
        "model",
        "evaluation",
        "plan",
    },  # lora_rlhf_demo
    "api": set(),  # everything above, filled below
    "__init__": {"api"},  # lazily
    "cli": set(),  # everything above, filled below
}
MAY_IMPORT["api"] = set(MAY_IMPORT) - {"api", "__init__", "cli", "demo"}
MAY_IMPORT["cli"] = set(MAY_IMPORT) - {"__init__", "cli"}
# Libraries that only some rooms may import.
ONLY_IN = {
    "torch": {
        *("system", "algo", "stats", "data", "model", "stages", "judges", "probes", "evaluation", "inspection"),
        *("doctor", "plan", "exporting", "chat", "demo"),
    },
    # exporting/plain_check.py alone, which is run without this package, and data/template_bounds.py alone
    "transformers": {"model", "exporting", "data"},
    "peft": {"model"},
    "scipy": {"stats"},
    "gguf": {"exporting"},
    "bitsandbytes": {"system", "model"},  # system/kernel_trial.py alone
    "lm_eval": {"evaluation"},  # only where it is asked for
    "trl": {"stages", "plan"},  # stages/trl_loss.py and plan/pairs.py alone; tests measure SFT against it
    "datasets": {"data"},
    "accelerate": {"system"},
    "matplotlib": {"render", "evaluation", "inspection"},
    "jinja2": {"render", "data", "exporting"},
    "httpx2": {"judges"},
    "gradio": {"demo"},
    "lora_rlhf_demo": {"demo", "cli"},
}
OF_ALGO = {"torch", "collections", "dataclasses", "functools", "itertools", "math", "typing"}


def room_of(path: Path) -> str:
    """The room that a module belongs to; a module at the top is a room of its own."""
    if path.is_relative_to(DEMO):
        return "demo"
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def name_of(path: Path) -> str:
    return str(path.relative_to(DEMO.parent if path.is_relative_to(DEMO) else PACKAGE))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import that runs, those inside functions included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports within the package are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif not is_type_checking(node):
            yield from imports(node)


def violations(room: str, source: str) -> list[str]:
    """Every import in a module of that room that the house does not allow."""
    found = []
    for module, name in imports(ast.parse(source)):
        top, *inner = module.split(".")
        if top == "lora_rlhf":
            target = inner[0] if inner else name
            if target not in {room, *MAY_IMPORT[room]} and target not in ("__version__", None):
                found.append(f"{room} imports lora_rlhf.{target}")
        elif room not in ONLY_IN.get(top, {room}) or (room == "algo" and top not in OF_ALGO):
            found.append(f"{room} imports {top}")
    return found


def test_imports_go_down() -> None:
    faults = {name_of(path): violations(room_of(path), path.read_text()) for path in MODULES}
    assert {name: found for name, found in faults.items() if found} == {}


def test_every_module_says_its_job() -> None:
    assert [name_of(path) for path in MODULES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_no_room_is_above_itself() -> None:
    """No circle: every room's imports stand above it in the table."""
    names = list(MAY_IMPORT)
    assert [room for room in names if not MAY_IMPORT[room] <= set(names[: names.index(room)])] == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("algo", "import numpy"),
        ("algo", "from lora_rlhf.system.errors import UserError"),
        ("system", "from lora_rlhf.configs.values import check"),
        ("stats", "import transformers"),
        ("data", "def f():\n    from lora_rlhf.model.base import load_base"),
        ("model", "import lora_rlhf.stages.ppo"),
        ("model", "from lora_rlhf import data"),
        ("evaluation", "from lora_rlhf.stages import session"),
        ("evaluation", "from peft import PeftModel"),
        ("stages", "from transformers import AutoModelForCausalLM"),
        ("stages", "if True:\n    import bitsandbytes.nn"),
        ("tinyworld", "from lora_rlhf.evaluation.config import EvaluateConfig"),
        ("tinyworld", "import torch"),
        ("configs", "from lora_rlhf.runs.folder import find_stage"),
        ("cli", "import torch"),
        ("inspection", "from lora_rlhf.evaluation.metrics import percent"),
        ("inspection", "import transformers"),
        ("stages", "from lora_rlhf.inspection.batches import Cell"),
        ("doctor", "import transformers"),
        ("doctor", "from lora_rlhf.model import base"),
        ("release", "from lora_rlhf.stages import ppo"),
        ("release", "import torch"),
        ("system", "from lora_rlhf.runs.folder import StageFolder"),
        ("demo", "from lora_rlhf.stages import ppo"),
        ("demo", "import transformers"),
        ("evaluation", "import gradio"),
        ("model", "from lora_rlhf_demo.worker import Host"),
    ],
)
def test_forbidden_imports_are_found(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


def test_type_checking_imports_do_not_count() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import PreTrainedTokenizerBase"
    assert violations("data", source) == []


def test_the_page_on_architecture_has_the_same_table() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|[^|]+\|([^|]*)\|$", page, re.MULTILINE)
    allowed = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in rows if "every room" not in cell}
    assert allowed == {room: rooms for room, rooms in MAY_IMPORT.items() if room not in ("__init__", "api", "cli")}
    assert [room for room, _ in rows] == [room for room in MAY_IMPORT if room != "__init__"]


def test_the_page_on_architecture_names_the_rooms_of_each_library() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    cells = dict(re.findall(r"^\| ([\w-]+) \| ([^|]+) \|$", page.partition("| library |")[2], re.MULTILINE))
    cells = {name.lower().replace("-", "_"): cell for name, cell in cells.items()}
    for library in ONLY_IN.keys() - {"torch", "trl", "lora_rlhf_demo"}:
        assert set(re.findall(r"`(\w+)`", cells[library])) == ONLY_IN[library], library
    without_torch = set(MAY_IMPORT) - ONLY_IN["torch"] - {"api", "__init__"}
    assert set(re.findall(r"`(\w+)`", cells["torch"])) == without_torch


def test_every_room_has_rules() -> None:
    assert {room_of(path) for path in MODULES} == set(MAY_IMPORT)


# Where files are opened by other means than system/plain_files.py: never files of a run. They are data, bases and
# templates that the user names, files of this package and of the system, and what a folder holds that was just made.
OPENERS = {
    *("system/plain_files.py", "system/disk.py", "system/memory.py", "cli/main.py", "exporting/folder.py"),
    *("data/parts.py", "data/containers.py", "data/chosen_template.py", "data/io.py", "doctor/libraries.py"),
    *("doctor/storage.py", "model/files.py", "model/memory.py", "model/tensor_files.py", "model/adapter_folder.py"),
    *("model/adapters.py", "exporting/gguf.py", "exporting/verify.py", "exporting/plain_check.py"),
    *("exporting/plain_score_check.py", "evaluation/harness.py"),
    *("rewards/worker.py", "rewards/sandbox.py"),  # pipes and /proc
    "stages/checkpoint.py",  # load_file, after require_no_link
    *(f"lora_rlhf_demo/{name}.py" for name in ("app", "label_tab", "ranker", "start_tab")),  # of the package
    "render/curves.py",  # of the package
}


def openings(source: str) -> list[str]:
    """What opens, empties or copies a file in a module. A new file (mode "xb") may be opened anywhere."""
    names = {"read_text", "read_bytes", "truncate", "copyfile", "copytree", "safe_open", "load_file", "FileIO"}
    names |= {"save_file", "touch", "fdopen", "write_bytes"}
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else None
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        is_open = name == "open" and (owner in (None, "os", "io", "gzip") or re.search("path|file$", str(owner)))
        is_new = any(isinstance(argument, ast.Constant) and argument.value == "xb" for argument in node.args)
        is_opened = owner is not None and re.search("file$|archive", owner)  # a method of an opened file
        if not is_new and (is_open or (name in names and not is_opened)):
            found.append(ast.unparse(node)[:60])
        if name == "write_text" and owner is not None:
            found.append(ast.unparse(node)[:60])
    return found


def test_files_of_a_run_are_opened_in_one_place() -> None:
    faults = {name_of(path): openings(path.read_text()) for path in MODULES}
    assert {name: found for name, found in faults.items() if found and name not in OPENERS} == {}
    assert {name for name in OPENERS if not faults[name]} == set()


@pytest.mark.parametrize(
    "source",
    [
        *("open(path)", "open(path, 'wb')", "Path(name).read_text()", "path.open('ab')", "os.open(path, 0)"),
        *("os.truncate(path, 0)", "path.write_text('')", "shutil.copyfile(a, b)", "load_file(path)", "path.touch()"),
    ],
)
def test_other_ways_to_open_a_file_are_found(source: str) -> None:
    assert len(openings(source)) == 1
    assert openings("open(path, 'xb')") == openings("open_file(path)") == openings("file.truncate(3)") == []


def test_adapters_are_switched_in_one_place() -> None:
    switches = {"set_adapter", "disable_adapter", "enable_adapters", "disable_adapters"}
    places = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in switches
    }
    assert places == {"model/shared.py"}
