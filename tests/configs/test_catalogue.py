"""The table of stages: its rows fit what they describe, and the rest of the code asks it."""

import ast
import importlib
from pathlib import Path

import lora_rlhf_demo
import pytest

import lora_rlhf
from lora_rlhf.cli.commands import COMMANDS
from lora_rlhf.configs.catalogue import (
    BASE,
    BY_NAME,
    BY_ROLE,
    PPO,
    REWARD,
    ROW_KINDS,
    SFT,
    STAGES,
    WRITERS,
    Stage,
    ancestors,
    readers,
)
from lora_rlhf.data.formats import COMMANDS as COMMANDS_OF_KINDS
from lora_rlhf.model import shared

PACKAGE, DEMO = Path(lora_rlhf.__file__).parent, Path(lora_rlhf_demo.__file__).parent
# Where a stage's own page, configuration and row are, and stages may be named.
ROOMS_OF_STAGES = ("stages/", "configs/")
# The same words with other meanings: {module or room: words}. `reward` is also a judge, a section of the report and a
# role of PPO's; `policy` is also a gate's file of rules.
OTHER_MEANINGS = {
    "judges/": {"reward"},
    "probes/": {"reward"},
    "evaluation/": {"reward"},
    "release/": {"policy", "reward"},
    "exporting/card_evaluation.py": {"reward"},
}


def named_stages(source: str) -> set[str]:
    """The names and roles of stages that stand in the source as words."""
    words = {*BY_NAME, *BY_ROLE}
    nodes = ast.walk(ast.parse(source))
    return {str(node.value) for node in nodes if isinstance(node, ast.Constant) and node.value in words}


def test_stages_are_named_in_their_own_files_alone() -> None:
    named = {}
    for root in (PACKAGE, DEMO):
        for path in root.rglob("*.py"):
            module = path.relative_to(root).as_posix()
            allowed = {word for place, words in OTHER_MEANINGS.items() if module.startswith(place) for word in words}
            if not module.startswith(ROOMS_OF_STAGES) and (words := named_stages(path.read_text()) - allowed):
                named[module] = words
    assert named == {}


def test_a_named_stage_is_seen() -> None:
    assert named_stages('STAGES = ("sft", "reward")\nrole = f"{run}:policy"') == {"sft", "reward"}


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_row_fits_its_configuration_and_its_page(stage: Stage) -> None:
    settings = [*stage.reads, *stage.settings, *(plot.target for plot in stage.plots if plot.target is not None)]
    assert [name for name in settings if not stage.has_setting(name)] == []
    assert all(parent in list(BY_NAME)[: STAGES.index(stage)] for parent in stage.parents)
    assert callable(importlib.import_module(stage.page).train)
    assert COMMANDS[stage.name].kind is stage.config


def test_names_and_roles_are_distinct() -> None:
    assert len(BY_NAME) == len(BY_ROLE) == len(STAGES)
    assert BASE == shared.BASE not in BY_ROLE


def test_what_the_table_tells() -> None:
    assert SFT in WRITERS and PPO in WRITERS and REWARD not in WRITERS
    assert ancestors(PPO) == (SFT, REWARD, PPO) and ancestors(REWARD) == (SFT, REWARD) and ancestors(SFT) == (SFT,)
    assert [readers(kind)[0] for kind in COMMANDS_OF_KINDS] == [SFT, REWARD, REWARD, PPO, PPO]
    assert ROW_KINDS["agreement"] == "rankings"


def test_commands_that_data_name_are_those_of_the_table() -> None:
    """`data` may not read the table: the stage and the setting in its messages are held to it here."""
    for kind, command in COMMANDS_OF_KINDS.items():
        _, name, flag = command.split()
        assert ROW_KINDS[flag.removeprefix("--").replace("-", "_")] == kind and BY_NAME[name] in readers(kind)
