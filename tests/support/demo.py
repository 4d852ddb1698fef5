"""Runs made by hand around a tiny model, and what the tests of the app ask of them."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lora_rlhf_demo.handler import Limits, RequestHandler
from lora_rlhf_demo.loaded_runs import LoadedRuns
from lora_rlhf_demo.requests import Answered, Ask, Column, Event, Request, Settings
from lora_rlhf_demo.worker import ModelWorker
from playwright.sync_api import Locator

from lora_rlhf.configs.stages import PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.data.schema import Message
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.open import describe_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.runs.folder import ADAPTER, Parent, StageFolder, find_stage

OFFSET = 0.25
STAGES = ("base", "sft", "policy")
HOSTILE = '<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> [l](javascript:alert(1)) \x1b[31m'
RIGHT_TO_LEFT = "שלום \u202e👋🏽 عالم"
SETTLED = 0.3  # seconds that a box must keep what was written into it
PORT = 17860 + 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # of the first app in this process


@dataclass(frozen=True)
class Served:
    """The app at work: where, and on which runs."""

    url: str
    root: Path


def trained(base: Path) -> SharedModel:
    """A model whose sft, reward and policy all differ."""
    model = SharedModel(load_base(BaseSpec(str(base), "none"), "cpu"))
    for number, role in enumerate(("sft", "reward", "policy")):
        model.add_role(role, LoraSettings(rank=4, alpha=8), head=role == "reward")
        generator = torch.Generator().manual_seed(number)
        for name, parameter in model.named_parameters_of(role):
            if ".lora_B." in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def save_run(model: SharedModel, folder: Path, sft: str = "sft", policy: str = "policy") -> Path:
    """A run of that model's stages, all finished; `sft` and `policy` are the roles that are saved as these stages."""
    base = describe_base(model)
    first = StageFolder(SFTConfig(run=str(folder), model="m", demonstrations="d.jsonl"), "sft")
    reward = StageFolder(RewardConfig(run=str(folder), rankings="r.jsonl"), "reward")
    ppo = StageFolder(PPOConfig(run=str(folder), prompts="p.jsonl", reference="sft"), "ppo")
    parents: dict[str, Parent] = {}
    for stage, role, results in ((first, sft, {}), (reward, "reward", {"offset": OFFSET}), (ppo, policy, {})):
        stage.begin(base, parents, {})
        model.save_role(role, stage.path / ADAPTER)
        stage.finish(results)
        parents = {**parents, stage.path.name: find_stage(stage.path, stage.path.name)}
    return folder


def worker_of(root: Path, limits: Limits | None = None) -> ModelWorker:
    """A worker of the runs there."""
    return ModelWorker(lambda: RequestHandler(LoadedRuns(root, "cpu"), limits or Limits()))


def ask(run: str, text: str, seed: int = 0, stages: Sequence[str] = STAGES, length: int = 8) -> Ask:
    """One question to those stages."""
    messages = (Message("user", text),)
    return Ask(run, tuple(Column(stage, messages) for stage in stages), Settings(1.0, length, seed))


def last(worker: ModelWorker, request: Request) -> Event:
    """How a request ends."""
    *_, event = worker.submit(request).events()
    return event


def texts(event: Event) -> tuple[str, ...]:
    """The answers that it ended with."""
    assert isinstance(event, Answered), event
    return tuple(answer.text for answer in event.answers)


def write(box: Locator, text: str) -> None:
    """Fills a box until it keeps the text: one whose tab or section has just been opened may be emptied once more."""
    box.fill(text)
    kept = time.monotonic()
    while time.monotonic() < kept + SETTLED:
        if box.input_value() != text:
            box.fill(text)
            kept = time.monotonic()
        box.page.wait_for_timeout(50)
