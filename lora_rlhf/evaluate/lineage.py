"""Which finished stages belong to a run, that they fit each other, and the model that can play all of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.errors import UserError
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.run import CONFIG, Parent, find_stage, has_stage
from lora_rlhf.settings import read_yaml

SAME_BASE = ("source_hash", "quantization", "chat_template")


@dataclass(frozen=True)
class RunStages:
    """A run's finished stages. `sft` and `reward` are those that the policy was trained from, where there is one."""

    sft: Parent
    reward: Parent | None
    ppo: Parent | None

    @property
    def writers(self) -> tuple[str, ...]:
        """The roles whose responses are compared."""
        return (BASE, "sft") if self.ppo is None else (BASE, "sft", "policy")

    @property
    def ppo_config(self) -> dict[str, Any]:
        """What the policy was trained with; empty without a policy."""
        return {} if self.ppo is None else read_yaml(self.ppo.folder / CONFIG)

    def seconds(self) -> dict[str, float]:
        """How long each stage took."""
        stages = {"sft": self.sft, "reward": self.reward, "ppo": self.ppo}
        return {name: stage.manifest["seconds"] for name, stage in stages.items() if stage is not None}


def find_stages(run: str) -> RunStages:
    """UserError when there is no finished SFT stage, or when stages do not belong together."""
    ppo = find_stage(Path(run) / "ppo", "ppo") if has_stage(run, "ppo") else None
    reward = _parent(run, "reward", ppo)
    sft = _parent(run, "sft", ppo) or find_stage(Path(run) / "sft", "sft")
    for stage in (reward, ppo):
        if stage is not None:
            _require_same_base(sft, stage)
    return RunStages(sft, reward, ppo)


def open_model(stages: RunStages, device: str, model: SharedModel | None) -> SharedModel:
    """The base with the adapters of every writer; what a given model holds already is used as it is."""
    if model is None:
        model = open_base(stages.sft.manifest["base"], device)
    elif model.base.source_hash != stages.sft.manifest["base"]["source_hash"]:
        raise UserError(f"{stages.sft.folder} was trained on another base than {model.base.spec.name!r} as loaded")
    for role, stage in (("sft", stages.sft), ("reward", stages.reward), ("policy", stages.ppo)):
        if stage is not None and role not in model.roles:
            model.load_role(role, stage.adapter)
    return model


def _parent(run: str, stage: str, ppo: Parent | None) -> Parent | None:
    """The stage that PPO started from, in this run or wherever it was; without PPO, the run's own if it has one."""
    own = find_stage(Path(run) / stage, stage) if has_stage(run, stage) else None
    record = None if ppo is None else ppo.manifest["parents"].get(stage)
    if record is None or (own is not None and own.manifest["id"] == record["id"]):
        return own
    other = find_stage(record["folder"], stage)
    if other.manifest["id"] != record["id"]:
        raise UserError(
            f"{other.folder}: this {stage} stage (id {other.manifest['id']}) was made after the policy, which was "
            f"trained from another (id {record['id']}); run `lora-rlhf ppo --run {run} --overwrite` first"
        )
    return other


def _require_same_base(sft: Parent, stage: Parent) -> None:
    one, other = sft.manifest["base"], stage.manifest["base"]
    if differing := [name for name in SAME_BASE if one.get(name) != other.get(name)]:
        found = "; ".join(f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in differing)
        raise UserError(f"{sft.folder} and {stage.folder} were not trained on the same base: {found}")
