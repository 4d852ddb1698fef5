"""What is in memory: one base, with the adapters of the runs that were shown last."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from lora_rlhf.evaluate.systems import RunStages, find_stages
from lora_rlhf.model.dense import Dequantize, keep_dense
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.runs import folder_of, list_runs

MOST_RUNS = 8  # whose adapters are kept; the run that was not shown for longest makes room


@dataclass(frozen=True)
class Shown:
    """A run as it is loaded: the role of each column, of the reward model and of the reference (None: there is none).

    `ids` are those of the stages, so that a stage that is made again is loaded again.
    """

    roles: dict[str, str]
    reward: str | None
    reference: str | None
    ids: tuple[str, ...]


class Memory:
    """One base and the runs on it. Not thread-safe."""

    def __init__(
        self, root: Path, device: str, trust_remote_code: bool = False, dequantize: Dequantize = "auto"
    ) -> None:
        self.root, self.device = root, device
        self._trusted, self._dequantize = trust_remote_code, dequantize
        self._model: SharedModel | None = None
        self._shown: dict[str, Shown] = {}  # the one used last stands last
        self._loaded = 0  # runs, ever: a role's name is not used twice

    @property
    def model(self) -> SharedModel:
        """The base that is loaded; there is one once a run was."""
        assert self._model is not None
        return self._model

    def close(self) -> None:
        """Lets go of the base and of all runs, so that another base fits into memory."""
        self._model, self._shown = None, {}
        self.free()

    def free(self) -> None:
        """Gives back what the allocator keeps for later, after memory ran out."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def held(self, run: str) -> Shown | None:
        """A run that is loaded and is still as on disk. UserError where it cannot be shown."""
        shown = self._shown.get(run)
        if shown is None or shown.ids != _ids(self._find(run)):
            return None
        self._shown[run] = self._shown.pop(run)
        return shown

    def load(self, run: str) -> Shown:
        """Loads a run; another base takes the place of the one before. UserError where it cannot be: then all is as
        before, but for a base that had to go.
        """
        stages = self._find(run)
        record, reference = stages.sft.manifest["base"], stages.reference(stages.writers[-1][0])
        if self._model is not None and self._model.base.source_hash != record["source_hash"]:
            self.close()
        if self._model is None:
            self._model = open_base(record, self.device, trust_remote_code=self._trusted)
            keep_dense(self._model.causal, self._dequantize)
        self._loaded += 1
        named = f"run{self._loaded}"
        roles = {column: BASE if adapter is None else f"{named}-{column}" for column, adapter in _adapters(stages)}
        adapters = {roles[column]: adapter for column, adapter in _adapters(stages) if adapter is not None}
        reward = None
        if stages.reward is not None:
            reward = f"{named}-reward"
            adapters[reward] = stages.reward.adapter
        self._load_all(adapters)
        if reward is not None and stages.reward is not None:
            self._model.set_score_offset(reward, stages.reward.score_offset)
        # only now: PEFT cannot add an adapter to a model that has lost its last one
        if run in self._shown:
            self._unload(run)
        shown = Shown(roles, reward, None if reference is None else roles[reference], _ids(stages))
        self._shown[run] = shown
        while len(self._shown) > MOST_RUNS:
            self._unload(next(iter(self._shown)))
        return shown

    def others(self, run: str) -> tuple[str, ...]:
        """The columns of the other runs that have the base of this one: "NAME:policy", "NAME:sft"."""
        found: list[str] = []
        for state in list_runs(self.root):
            if state.name != run and state.can_chat:
                with suppress(UserError):  # a run that cannot be shown is no choice here, and says why when chosen
                    stages = self._find(state.name)
                    if stages.sft.manifest["base"]["source_hash"] == self.model.base.source_hash:
                        found += [f"{state.name}:{column}" for column, adapter in _adapters(stages) if adapter]
        return tuple(found)

    def _find(self, run: str) -> RunStages:
        return find_stages(str(folder_of(self.root, run)))

    def _load_all(self, adapters: dict[str, Path]) -> None:
        """All of them or none."""
        begun = []
        try:
            for role, adapter in adapters.items():
                self.model.load_role(role, adapter)
                begun.append(role)
        except BaseException:
            if self._shown:
                self._remove(begun)
            else:
                self.close()
            raise

    def _unload(self, run: str) -> None:
        shown = self._shown.pop(run)
        roles = [*shown.roles.values(), *([] if shown.reward is None else [shown.reward])]
        self._remove([role for role in roles if role != BASE])

    def _remove(self, roles: Sequence[str]) -> None:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):
            for role in roles:  # PEFT says each time which adapter it takes next; here roles say that
                self.model.remove_role(role)


def _adapters(stages: RunStages) -> list[tuple[str, Path | None]]:
    """(column, its adapter), in the order of training; the base has none."""
    return [(BASE, None), *((stage.role, parent.adapter) for stage, parent in stages.writers)]


def _ids(stages: RunStages) -> tuple[str, ...]:
    return tuple(parent.manifest["id"] for parent in stages.by_name.values())
