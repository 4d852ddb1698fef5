"""The house rules: who may import whom, what each module says of itself, how long it is. Read from the source alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

import lora_rlhf_demo
import pytest

import lora_rlhf

PACKAGE, DEMO = Path(lora_rlhf.__file__).parent, Path(lora_rlhf_demo.__file__).parent
MODULES = [*sorted(PACKAGE.rglob("*.py")), *sorted(DEMO.rglob("*.py"))]
MAX_LINES = 300

ROOMS = {
    *("algo", "data", "model", "stages", "evaluate", "inspection", "tinyworld", "doctor", "plan", "judges", "probes"),
    *("release", "export", "chat"),
}
# Strictly downward: what each room may import of this package besides itself. All but algo may raise errors.UserError.
# What stands below all rooms, and may be imported from any but algo.
GROUND = {"errors", "disk", "host", "network", "untrusted", "workers"}
SHELF = {"config", "stage_config", "settings", "run", "manifest"}  # what is chosen, and where results go
MAY_IMPORT = {
    "algo": set(),
    "data": GROUND,
    "model": {*GROUND, "algo"},
    "stages": {*GROUND, *SHELF, "algo", "data", "model", "tracking"},
    "judges": {*GROUND, *SHELF, "algo", "data", "model"},
    "probes": {*GROUND, *SHELF, "algo", "data"},
    "evaluate": {*GROUND, *SHELF, "algo", "data", "model", "judges", "probes"},
    "release": {*GROUND, *SHELF, "resume", "data", "evaluate"},
    "inspection": {*GROUND, *SHELF, "data", "model", "stages"},
    "tinyworld": {"errors", "data", "probes"},
    "doctor": {*GROUND, "data"},
    "plan": {*GROUND, "settings", "algo", "model"},
    "export": {*GROUND, *SHELF, "algo", "data", "model", "evaluate"},
    "chat": {*GROUND, *SHELF, "data", "model"},
    "tracking": set(),
    "errors": set(),
    "disk": set(),
    "host": set(),
    "network": set(),
    "untrusted": {"errors"},
    "workers": {"errors"},
    "__init__": set(),
    "settings": {"errors"},
    "stage_config": {"settings", "tracking"},
    "config": {"settings", "stage_config"},
    "manifest": {"errors", "untrusted"},
    "resume": {"errors", "settings", "stage_config"},
    "run": {*GROUND, *SHELF, "resume", "data"},
    "recipe": {*GROUND, *SHELF, *ROOMS},
    "recipe_run": {*GROUND, *SHELF, *ROOMS, "recipe", "resume"},
    "commands": {*GROUND, *SHELF, "recipe", "recipe_run", *ROOMS},
    "cli": {*GROUND, "settings", "commands"},
    "demo": {*GROUND, *SHELF, "algo", "data", "model", "evaluate"},  # lora_rlhf_demo, which only commands knows
}
# Libraries that only some rooms may import.
ONLY_IN = {
    "torch": {
        *("algo", "data", "model", "stages", "judges", "evaluate", "inspection", "doctor"),
        *("plan", "tracking", "workers", "probes", "export", "demo"),
    },
    "transformers": {"model", "export"},  # export/plain_check.py alone, which is run without this package
    "peft": {"model"},
    "gguf": {"export"},
    "bitsandbytes": {"model", "doctor"},
    "lm_eval": {"evaluate"},  # only where it is asked for
    "trl": set(),  # what SFT is measured against, in a test
    "datasets": {"data"},
    "accelerate": {"tracking", "workers"},
    "matplotlib": {"evaluate", "inspection"},
    "httpx2": {"judges"},
    "jsonargparse": {"cli"},
    "gradio": {"demo"},
    "lora_rlhf_demo": {"demo", "commands"},
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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    assert violations(room_of(path), path.read_text()) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_its_job_and_is_short(path: Path) -> None:
    source = path.read_text()
    assert ast.get_docstring(ast.parse(source)), "no docstring"
    num_lines = len(source.splitlines())
    assert num_lines <= MAX_LINES


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("algo", "import numpy"),
        ("algo", "from lora_rlhf.errors import UserError"),
        ("data", "import transformers"),
        ("data", "def f():\n    from lora_rlhf.model.base import load_base"),
        ("model", "import lora_rlhf.stages.ppo"),
        ("model", "from lora_rlhf import data"),
        ("evaluate", "from lora_rlhf.stages import session"),
        ("evaluate", "from peft import PeftModel"),
        ("stages", "from transformers import AutoModelForCausalLM"),
        ("stages", "if True:\n    import bitsandbytes.nn"),
        ("tinyworld", "from lora_rlhf.config import check"),
        ("tinyworld", "import torch"),
        ("config", "from lora_rlhf.run import find_stage"),
        ("recipe", "import torch"),
        ("inspection", "from lora_rlhf.evaluate.metrics import percent"),
        ("inspection", "import transformers"),
        ("stages", "from lora_rlhf.inspection.batches import Cell"),
        ("cli", "from lora_rlhf.stages import sft"),
        ("commands", "import jsonargparse"),
        ("doctor", "import transformers"),
        ("doctor", "from lora_rlhf.model import base"),
        ("release", "from lora_rlhf.stages import ppo"),
        ("release", "import torch"),
        ("tracking", "from lora_rlhf.run import StageFolder"),
        ("demo", "from lora_rlhf.stages import ppo"),
        ("demo", "import transformers"),
        ("evaluate", "import gradio"),
        ("model", "from lora_rlhf_demo.host import Host"),
    ],
)
def test_forbidden_imports_are_found(room: str, source: str) -> None:
    assert len(violations(room, source)) == 1


def test_type_checking_imports_do_not_count() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import PreTrainedTokenizerBase"
    assert violations("data", source) == []


def test_every_room_has_rules() -> None:
    assert {room_of(path) for path in MODULES} <= set(MAY_IMPORT)


def test_adapters_are_switched_in_one_place() -> None:
    switches = {"set_adapter", "disable_adapter", "enable_adapters", "disable_adapters"}
    places = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in switches
    }
    assert places == {"model/shared.py"}


def test_names_of_test_files_are_unique() -> None:
    """Without packages around them, two modules of one name would be one to pytest, in whichever folders they lie."""
    names = [path.name for path in Path(__file__).parent.rglob("*.py") if path.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))
