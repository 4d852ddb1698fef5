"""The Python API: stages, samples, reports and exports as functions of their configurations. See docs/python.md.

Heavy imports wait until a function is called.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_rlhf.configs.catalogue import DPO, PPO, REWARD, SFT, Stage
from lora_rlhf.configs.common import TrainingConfig
from lora_rlhf.configs.sample import SampleConfig
from lora_rlhf.configs.stages import DPOConfig, PPOConfig, RewardConfig, SFTConfig
from lora_rlhf.evaluation.config import EvaluateConfig
from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.runs.folder import METRICS, find_stage, read_metrics
from lora_rlhf.system import workers

if TYPE_CHECKING:
    from lora_rlhf.evaluation.report_model import Report
    from lora_rlhf.model.shared import SharedModel


@dataclass(frozen=True)
class TrainedStage:
    """A finished stage.

    folder: with adapter/, manifest.json, config.yaml and metrics.jsonl. results: those of its manifest. model: the base
    in memory with the run's roles; give it to the next stage, so that the base is loaded once.
    """

    folder: Path
    results: dict[str, Any]
    model: "SharedModel"

    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl, one a step."""
        return read_metrics(self.folder / METRICS)


def train_sft(config: SFTConfig, model: "SharedModel | None" = None) -> TrainedStage:
    """Supervised fine-tuning on demonstrations. An unfinished run of the same settings continues from its checkpoint.

    model: the base in memory that an earlier stage returned; without it the base is loaded. UserError for a mistake in
    the configuration or its files; Stopped for a run that ended early and has saved its checkpoints.
    """
    return _train_stage(SFT, config, model)


def train_reward(config: RewardConfig, model: "SharedModel | None" = None) -> TrainedStage:
    """Trains a reward model on rankings, from the run's SFT stage. `model` and errors as of `train_sft`."""
    return _train_stage(REWARD, config, model)


def train_dpo(config: DPOConfig, model: "SharedModel | None" = None) -> TrainedStage:
    """Trains a policy on rankings or votes alone, from the run's SFT stage. `model` and errors as of `train_sft`."""
    return _train_stage(DPO, config, model)


def train_ppo(config: PPOConfig, model: "SharedModel | None" = None) -> TrainedStage:
    """Trains a policy by PPO against the run's reward model, from its SFT stage. `model`, errors: see `train_sft`."""
    return _train_stage(PPO, config, model)


def _train_stage(stage: Stage, config: TrainingConfig, model: "SharedModel | None") -> TrainedStage:
    trained_model = stage.train(config, model)
    finished_stage = find_stage(Path(config.run) / stage.name, stage.name)
    return TrainedStage(finished_stage.folder, finished_stage.manifest["results"], trained_model)


def sample(config: SampleConfig, model: "SharedModel | None" = None) -> Path:
    """Writes K distinct responses of each prompt, ready to be ranked; returns the file. Errors as of `train_sft`."""
    from lora_rlhf.stages.sample import sample as write_samples

    write_samples(config, model)
    return Path(config.to)


def evaluate(config: EvaluateConfig, model: "SharedModel | None" = None) -> "Report":
    """Compares the stages of runs on held-out prompts; writes report.json, .html and .md, and returns the report.

    model: a base with roles of these runs, which are not loaded again. UserError for a mistake in the configuration.
    """
    from lora_rlhf.evaluation import report
    from lora_rlhf.tinyworld.probes import WORLD

    return workers.from_main(lambda: report.evaluate(config, model, world=WORLD))


def export(config: ExportConfig) -> dict[str, Any]:
    """Writes a trained role as a plain model, an adapter or a GGUF file; returns the export's manifest.

    It loads a base of its own. UserError for a mistake in the configuration; Stopped if the export differs from the
    trained model by more than the limits allow.
    """
    from lora_rlhf.exporting.export import export as export_role

    return export_role(config)
