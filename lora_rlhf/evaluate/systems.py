"""What is compared: the finished stages of runs, that they fit each other, and the model that can play all of them."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora_rlhf.configs.values import read_yaml
from lora_rlhf.evaluate.config import EvaluateConfig
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.runs.folder import CONFIG, Parent, adapter_hash, find_stage, has_stage
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import Kind, is_number, require

log = logging.getLogger("lora_rlhf")

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


@dataclass(frozen=True)
class System:
    """One that answers: its name in the report, and the role that plays it. `stage` and `id` are None for the base.

    `reference`: the role that its run's policy was held to, which distances are measured from.
    """

    name: str
    role: str
    run: str
    reference: str
    stage: str | None = None
    id: str | None = None
    adapter: Path | None = None

    def record(self) -> dict[str, Any]:
        """What the report says of it. By the adapter's hash, a gate tells whether it is about what is on disk."""
        adapter = {} if self.adapter is None else {"adapter_sha256": adapter_hash(self.adapter.parent)}
        return {"run": self.run, "stage": self.stage, "id": self.id, **adapter}


@dataclass(frozen=True)
class Compared:
    """The systems of an evaluation, the first run's stages, and which two systems the verdict is about.

    `others`: the stages of the other runs, by the run's name.
    """

    stages: RunStages
    systems: tuple[System, ...]
    candidate: str
    baseline: str
    others: Mapping[str, RunStages]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the systems, in the report's order."""
        return tuple(system.name for system in self.systems)

    @property
    def pairs(self) -> dict[str, tuple[str, str]]:
        """{A_vs_B: (A, B)}: the candidate with every other, then every other with the baseline; the base comes last."""
        rest = [name for name in self.names if name not in (self.candidate, self.baseline, BASE)]
        order = list(dict.fromkeys([self.candidate, self.baseline, *rest, BASE]))
        return {f"{a}_vs_{b}": (a, b) for i, a in enumerate(order) for b in order[i + 1 :] if i < 2}


def find_systems(config: EvaluateConfig) -> Compared:
    """The systems that a configuration asks for.

    UserError as of `find_stages`; for runs on different bases (with both hashes), two runs of one name, and a candidate
    or baseline that is not there.
    """
    stages = find_stages(config.run, config.sft, config.reward)
    own = _systems_of(config.run, stages, "", "")
    systems = [System(BASE, BASE, config.run, own[0].reference), *own]
    others = {}
    for number, run in enumerate(config.other_runs, start=1):
        name = Path(os.path.realpath(run)).name
        if any(system.name.startswith(f"{name}:") for system in systems):
            raise UserError(f"{run}: another of the runs is called {name!r} too; rename one of the two folders")
        others[name] = other = find_stages(run)
        _require_same_base(stages.sft, other.sft)
        played = {}  # the roles of this run's stages that are another run's too
        for system in _systems_of(run, other, f"{name}:", f"other{number}_"):
            if twin := next((s for s in systems if s.id == system.id), None):
                log.info("%s is the same stage as %s and is not generated twice", system.name, twin.name)
                played[system.role] = twin.role
            else:
                systems.append(replace(system, reference=played.get(system.reference, system.reference)))
    names = [system.name for system in systems]
    candidate = _named(config.candidate, "--candidate", names, "policy" if "policy" in names else "sft")
    baseline = _named(config.baseline, "--baseline", names, "sft" if candidate != "sft" else BASE)
    if candidate == baseline:
        raise UserError(f"candidate and baseline are both {candidate!r}: name two systems")
    return Compared(stages, tuple(systems), candidate, baseline, others)


def open_model(
    compared: Compared, device: str, model: SharedModel | None, trust_remote_code: bool = False
) -> SharedModel:
    """The base with the adapters of every system; what a given model holds already is used as it is."""
    stages = compared.stages
    if model is None:
        model = open_base(stages.sft.manifest["base"], device, trust_remote_code=trust_remote_code)
    elif model.base.source_hash != stages.sft.manifest["base"]["source_hash"]:
        raise UserError(f"{stages.sft.folder} was trained on another base than {model.base.spec.name!r} as loaded")
    adapters = [(system.role, system.adapter) for system in compared.systems]
    if stages.reward is not None:
        adapters.append(("reward", stages.reward.adapter))
    for role, adapter in adapters:
        if adapter is not None and role not in model.roles:
            model.load_role(role, adapter)
    return model


def _systems_of(run: str, stages: RunStages, name: str, role: str) -> list[System]:
    """A run's SFT model and policy, `name` and `role` before their names and roles."""
    sft, ppo = stages.sft, stages.ppo
    reference = BASE if stages.ppo_config.get("reference") == BASE else f"{role}sft"
    found = [System(f"{name}sft", f"{role}sft", run, reference, "sft", sft.manifest["id"], sft.adapter)]
    if ppo is not None:
        found.append(System(f"{name}policy", f"{role}policy", run, reference, "ppo", ppo.manifest["id"], ppo.adapter))
    return found


def _named(asked: str | None, flag: str, names: Sequence[str], default: str) -> str:
    if asked is not None and asked not in names:
        raise UserError(f"{flag} {asked!r} is none of the systems: {', '.join(names)}")
    return asked or default


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
    """UserError with what differs, both hashes of the bases' files among it."""
    one, other = sft.manifest["base"], stage.manifest["base"]
    if differing := [name for name in SAME_BASE if one.get(name) != other.get(name)]:
        found = "; ".join(f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in differing)
        raise UserError(f"{sft.folder} and {stage.folder} were not trained on the same base: {found}")
