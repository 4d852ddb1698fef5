"""The runs in memory: one base, with the adapters of the runs that were used last."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_rlhf.configs.catalogue import REWARD
from lora_rlhf.data.chosen_template import is_same_template
from lora_rlhf.evaluation.systems import RunStages, find_stages
from lora_rlhf.model.adapters import read_adapter
from lora_rlhf.model.dense import Dequantize, keep_dense_copies
from lora_rlhf.model.memory import free_memory
from lora_rlhf.model.open import open_base
from lora_rlhf.model.shared import BASE, SharedModel
from lora_rlhf.system.errors import UserError
from lora_rlhf_demo.runs import find_run_folder, list_runs

MOST_RUNS = 8  # whose adapters are kept; the least recently used run is unloaded first


@dataclass(frozen=True)
class RunRoles:
    """The roles of a loaded run.

    columns: {column: its role}. reward, reference: the role of the reward model, and the role that KL is measured from;
    None if the run has none. ids: of its stages, so that a stage that is trained again is loaded again.
    """

    columns: dict[str, str]
    reward: str | None
    reference: str | None
    ids: tuple[str, ...]


class LoadedRuns:
    """One base and the runs on it. Not thread-safe."""

    def __init__(
        self, root: Path, device: str, trust_remote_code: bool = False, dequantize: Dequantize = "auto"
    ) -> None:
        self.root, self.device = root, device
        self._trust_remote_code, self._dequantize = trust_remote_code, dequantize
        self._model: SharedModel | None = None
        self._runs: dict[str, RunRoles] = {}  # the last used one is last
        self._num_loads = 0  # so that no name of a role is used twice

    @property
    def model(self) -> SharedModel:
        """The base in memory; there is one after a run was loaded."""
        assert self._model is not None
        return self._model

    def close(self) -> None:
        """Frees the base and all runs, so that another base fits into memory."""
        self._model, self._runs = None, {}
        free_memory()

    def find_loaded(self, run: str) -> RunRoles | None:
        """The roles of a run if it is loaded and unchanged on disk. UserError for a run that cannot be used."""
        roles = self._runs.get(run)
        if roles is None or roles.ids != _stage_ids(self._find_stages(run)):
            return None
        self._runs[run] = self._runs.pop(run)
        return roles

    def load(self, run: str) -> RunRoles:
        """Loads a run; if it has another base, that base replaces the one in memory.

        UserError for a run that cannot be loaded. Then the other runs stay loaded, unless their base was replaced. A
        base that was loaded stays, so that the next try is refused at once.
        """
        stages = self._find_stages(run)
        base_record, reference = stages.sft.manifest["base"], stages.reference_role(stages.writers[-1][0])
        self._num_loads += 1
        prefix = f"run{self._num_loads}"
        columns = {
            column: BASE if adapter is None else f"{prefix}-{column}" for column, adapter in _column_adapters(stages)
        }
        adapters = {columns[column]: adapter for column, adapter in _column_adapters(stages) if adapter is not None}
        reward = None
        if stages.reward is not None:
            reward = f"{prefix}-{REWARD.role}"
            adapters[reward] = stages.reward.adapter
        if self._model is None or not self._is_loaded_base(base_record):
            self._replace_base(base_record, adapters.values())
        self._load_adapters(adapters)
        if reward is not None and stages.reward is not None:
            self.model.set_score_offset(reward, stages.reward.score_offset)
        # only now: PEFT cannot add an adapter to a model that has lost its last one
        if run in self._runs:
            self._unload_run(run)
        self._runs[run] = RunRoles(
            columns, reward, None if reference is None else columns[reference], _stage_ids(stages)
        )
        while len(self._runs) > MOST_RUNS:
            self._unload_run(next(iter(self._runs)))
        return self._runs[run]

    def columns_of_other_runs(self, run: str) -> tuple[str, ...]:
        """The columns of all other runs with the same base, as NAME:ROLE."""
        columns: list[str] = []
        for state in list_runs(self.root):
            if state.name != run and state.can_chat:
                with suppress(UserError):  # such a run is no choice here; it says why when it is chosen itself
                    stages = self._find_stages(state.name)
                    if self._is_loaded_base(stages.sft.manifest["base"]):
                        columns += [f"{state.name}:{column}" for column, adapter in _column_adapters(stages) if adapter]
        return tuple(columns)

    def _is_loaded_base(self, record: dict[str, Any]) -> bool:
        """Whether the base in memory is the recorded one, with its chat template."""
        loaded = {"chat_template": self.model.tokenizer.chat_template}
        return record["source_hash"] == self.model.base.source_hash and is_same_template(record, loaded)

    def _find_stages(self, run: str) -> RunStages:
        return find_stages(str(find_run_folder(self.root, run)))

    def _replace_base(self, record: dict[str, Any], adapters: Iterable[Path]) -> None:
        """Loads the base for these adapters. UserError for one that cannot be read, before the base in memory goes."""
        for adapter in adapters:
            read_adapter(adapter)
        self.close()
        self._model = open_base(record, self.device, trust_remote_code=self._trust_remote_code)
        keep_dense_copies(self._model.causal, self._dequantize)

    def _load_adapters(self, adapters: dict[str, Path]) -> None:
        """Loads all adapters, or none if one fails."""
        try:
            self.model.load_roles(adapters)
        except BaseException:
            if self._runs:
                self._remove_roles(list(adapters))
            elif self.model.peft is not None:  # some were added, and PEFT cannot lose its last one
                self.close()
            raise

    def _unload_run(self, run: str) -> None:
        """Removes the roles of a run; the base stays."""
        run_roles = self._runs.pop(run)
        roles = [*run_roles.columns.values(), *([] if run_roles.reward is None else [run_roles.reward])]
        self._remove_roles([role for role in roles if role != BASE])

    def _remove_roles(self, roles: Sequence[str]) -> None:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):
            for role in roles:  # PEFT warns which adapter becomes active; here each block names its role
                self.model.remove_role(role)


def _column_adapters(stages: RunStages) -> list[tuple[str, Path | None]]:
    """Pairs of a column and its adapter, in the order of training; the base has no adapter."""
    return [(BASE, None), *((stage.role, parent.adapter) for stage, parent in stages.writers)]


def _stage_ids(stages: RunStages) -> tuple[str, ...]:
    return tuple(parent.manifest["id"] for parent in stages.by_name.values())
