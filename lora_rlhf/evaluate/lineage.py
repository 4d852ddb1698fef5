"""Which finished stages belong to a run, that they fit each other, and the model that can play all of them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.errors import UserError
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.run import CONFIG, Parent, find_stage, has_stage
from lora_rlhf.settings import read_yaml
from lora_rlhf.untrusted import Kind, is_number, require

SAME_BASE = ("source_hash", "quantization", "chat_template")
READ_OF_PPO: dict[str, Kind] = {
    "reference": ("sft or base", lambda value: value in ("sft", BASE)),
    "kl_target": ("a number or null", lambda value: value is None or is_number(value)),
}


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
        """What the policy was trained with; empty without a policy. UserError where it is not what is read here."""
        if self.ppo is None:
            return {}
        place = self.ppo.folder / CONFIG
        values = read_yaml(place)
        try:
            require({"kl_target": None} | values, READ_OF_PPO)
        except ValueError as error:
            raise UserError(f"{place}: {error}; restore that file, or run PPO again with --overwrite") from error
        return values

    def seconds(self) -> dict[str, float]:
        """How long each stage took."""
        stages = {"sft": self.sft, "reward": self.reward, "ppo": self.ppo}
        return {name: stage.manifest["seconds"] for name, stage in stages.items() if stage is not None}


def find_stages(run: str, sft: str | None = None, reward: str | None = None) -> RunStages:
    """The stages of a run. `sft` and `reward` say where those are that the policy was trained from, if not there.

    UserError when there is no finished SFT stage, when stages do not belong together, and when the policy's manifest
    leads to a folder that nobody here named.
    """
    ppo = find_stage(Path(run) / "ppo", "ppo") if has_stage(run, "ppo") else None
    judge = _parent(run, "reward", reward, ppo)
    start = _parent(run, "sft", sft, ppo) or find_stage(Path(run) / "sft", "sft")
    for stage in (judge, ppo):
        if stage is not None:
            _require_same_base(start, stage)
    return RunStages(start, judge, ppo)


def open_model(
    stages: RunStages, device: str, model: SharedModel | None, trust_remote_code: bool = False
) -> SharedModel:
    """The base with the adapters of every writer; what a given model holds already is used as it is."""
    if model is None:
        model = open_base(stages.sft.manifest["base"], device, trust_remote_code=trust_remote_code)
    elif model.base.source_hash != stages.sft.manifest["base"]["source_hash"]:
        raise UserError(f"{stages.sft.folder} was trained on another base than {model.base.spec.name!r} as loaded")
    for role, stage in (("sft", stages.sft), ("reward", stages.reward), ("policy", stages.ppo)):
        if stage is not None and role not in model.roles:
            model.load_role(role, stage.adapter)
    return model


def _parent(run: str, stage: str, named: str | None, ppo: Parent | None) -> Parent | None:
    """The stage that PPO started from: the one that was named, the run's own, or where the policy's manifest says.

    Without PPO, the one that was named or the run's own, if it has one.
    """
    record = None if ppo is None else ppo.manifest["parents"].get(stage)
    if named is not None:
        found = find_stage(named, stage)
    else:
        own = find_stage(Path(run) / stage, stage) if has_stage(run, stage) else None
        if record is None or (own is not None and own.manifest["id"] == record["id"]):
            return own
        found = find_stage(_followed(run, stage, record["folder"]), stage)
    if record is not None and found.manifest["id"] != record["id"]:
        raise UserError(
            f"{found.folder}: this {stage} stage (id {found.manifest['id']}) was made after the policy, which was "
            f"trained from another (id {record['id']}); run `lora-rlhf ppo --run {run} --overwrite` first"
        )
    return found


def _followed(run: str, stage: str, recorded: str) -> Path:
    """The folder that a manifest records for a parent: relative to the run, or in older ones to the working folder.

    UserError for one outside the folder that holds the run: a run may come from anybody, and does not say what is
    opened here. Links are resolved; a run that is one itself stands both where it is named and where it leads.
    """
    inside = Path(run) / recorded
    place = inside if os.path.exists(inside) else Path(recorded)
    around = {os.path.realpath(Path(run).parent), str(Path(os.path.realpath(run)).parent)}
    real = Path(os.path.realpath(place))
    if ".." in Path(recorded).parts or not any(real.is_relative_to(root) for root in around):
        raise UserError(
            f"{run}/ppo/manifest.json: the policy's {stage} stage is recorded at {recorded!r}, which is not followed "
            f"outside {' or '.join(sorted(around))}; if it is yours, name it with --{stage}, or copy that stage to "
            f"{run}/{stage}"
        )
    return place


def _require_same_base(sft: Parent, stage: Parent) -> None:
    one, other = sft.manifest["base"], stage.manifest["base"]
    if differing := [name for name in SAME_BASE if one.get(name) != other.get(name)]:
        found = "; ".join(f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in differing)
        raise UserError(f"{sft.folder} and {stage.folder} were not trained on the same base: {found}")
