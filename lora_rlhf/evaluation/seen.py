"""Finds prompts of an evaluation in the data that the stages were trained on."""

import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from lora_rlhf.configs.catalogue import BY_NAME
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.data.locate import HubDataset, locate
from lora_rlhf.data.refusals import pluralize
from lora_rlhf.data.schema import Prompt
from lora_rlhf.data.sources import Source
from lora_rlhf.evaluation.report_model import Report, StageData, TrainingData
from lora_rlhf.evaluation.systems import RunStages
from lora_rlhf.runs.folder import CONFIG, Parent, data_hash, find_data
from lora_rlhf.system.errors import UserError

MOST_SECONDS = 30.0  # of reading, for all stages together
NO_OTHERS: Mapping[str, RunStages] = MappingProxyType({})


def count_seen_prompts(
    stages: RunStages, path: str, prompts: Sequence[Prompt], others: Mapping[str, RunStages] = NO_OTHERS
) -> TrainingData:
    """Counts the prompts that are in each stage's data.

    path: the file of the prompts. others: {name of another run: its stages}, reported as NAME:STAGE; a stage that two
    runs share is reported once.

    In the result, `compared` is "all" if all data of a stage were read, "part" if reading took too long, and "none" if
    the data are on the hub or no longer at the path in the manifest; data that are the evaluation's own file (by its
    sha256) need no reading. Two prompts are the same if their keys are equal; what an earlier answer of a conversation
    answers is a prompt, too. Prompts that a stage held out for validation count, since its best epoch may have been
    chosen on them.
    """
    keys, seen_keys = {prompt.key for prompt in prompts}, set()
    deadline = time.monotonic() + MOST_SECONDS
    rows = []
    for name, stage, parent in _distinct_stages({"": stages, **others}):
        data = parent.manifest.get("data", {})
        record = next((data[name] for name in BY_NAME[stage].may_train_on if data.get(name)), None)
        if not record:
            continue
        stage_keys, compared = _find_seen_keys(parent, find_data(record, parent.run), keys, deadline)
        if compared == "none" and _is_same_data(record, path):
            stage_keys, compared = keys, "all"
        seen_keys |= stage_keys
        rows.append(StageData(stage=name, path=record["path"], seen=len(stage_keys), compared=compared))
    return TrainingData(prompts=len(keys), seen=len(seen_keys), stages=rows)


def seen_warnings(report: Report) -> list[str]:
    """The warning of the report's prompts, and those of the sets that are asked beside them, by their flags."""
    sets = {"tools": report.sets.tools, "grounded": report.sets.grounded, "refusals": report.sets.refusals}
    warnings = [seen_warning(report.training_data)]
    for name, one in sets.items():
        if one is not None and one.training_data is not None and (text := seen_warning(one.training_data)):
            warnings.append(f"--{name}: {text}")
    return [warning for warning in warnings if warning]


def seen_warning(data: TrainingData) -> str:
    """A warning in one line; empty if all data were compared and no prompt was seen in training."""
    parts = []
    if data.seen:
        counts = ", ".join(f"{row.stage} {row.seen}" for row in data.stages if row.seen)
        parts.append(
            f"{data.seen} of {pluralize(data.prompts or 0, 'prompt')} also in training data ({counts}): figures on "
            "these flatter the stages"
        )
    if uncompared_stages := [f"{row.stage} ({row.path})" for row in data.stages if row.compared != "all"]:
        parts.append(f"prompts not compared with all training data of {', '.join(uncompared_stages)}")
    return "; ".join(parts)


def _distinct_stages(runs: Mapping[str, RunStages]) -> Iterator[tuple[str, str, Parent]]:
    """Yields (name in the report, name of the stage, finished stage) of all runs, each stage once."""
    ids = set()
    for run, stages in runs.items():
        for stage, parent in stages.by_name.items():
            if (identity := parent.manifest.get("id")) in ids:
                continue
            ids |= {identity} - {None}
            yield f"{run}:{stage}" if run else stage, stage, parent


def _find_seen_keys(parent: Parent, path: str, keys: AbstractSet[str], deadline: float) -> tuple[set[str], str]:
    """Returns (the keys that are in a stage's data, how much of the data was compared)."""
    seen_keys: set[str] = set()
    try:
        if isinstance(locate(path), HubDataset):
            return seen_keys, "none"
        settings = read_yaml(parent.folder / CONFIG)
        columns = settings.get("columns")
        source: Source[Prompt] = Source(path, "prompts", settings.get("format"), tolerant=True, columns=columns)
        for prompt in source:
            seen_keys |= keys & {asked.key for asked in _asked_in(prompt)}
            if len(seen_keys) == len(keys):
                break
            if time.monotonic() > deadline:
                return seen_keys, "part"
    except UserError:
        return seen_keys, "none"
    return seen_keys, "all"


def _asked_in(prompt: Prompt) -> Iterator[Prompt]:
    """What the answers of a conversation answer: the prompt itself, and its part before each earlier answer."""
    for end, message in enumerate(prompt.messages):
        if end and message.role == "assistant":
            yield replace(prompt, messages=prompt.messages[:end])
    yield prompt


def _is_same_data(record: dict[str, Any], path: str) -> bool:
    """Whether the stage was trained on the evaluation's own file or dataset, even if its path has changed."""
    return record["path"] == path or (record["sha256"] is not None and record["sha256"] == data_hash(path))
