"""Collects the files of a package from a run folder."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_rlhf import __version__
from lora_rlhf.configs.catalogue import BY_NAME, PPO, REWARD
from lora_rlhf.configs.values import read_yaml
from lora_rlhf.evaluation.report_model import Report, read_report
from lora_rlhf.release.bill import BILL, bill_of_materials
from lora_rlhf.release.bundle import Content
from lora_rlhf.release.config import PackageConfig
from lora_rlhf.release.data_facts import DataFile, read_data_facts
from lora_rlhf.release.gate import summarize_record
from lora_rlhf.release.note import release_note_text
from lora_rlhf.release.paths import INPUTS, PathMap
from lora_rlhf.release.record import RECORD_FOLDER, read_gate_record
from lora_rlhf.release.repeat import RECIPE, Step, commands_page, find_steps, repeat_config, repeat_script
from lora_rlhf.runs.folder import ADAPTER, CONFIG, METRICS, SAMPLES, adapter_files, read_metrics
from lora_rlhf.runs.manifest import MANIFEST, read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.plain_files import read_file, require_no_link, require_size
from lora_rlhf.system.untrusted import MOST_BYTES, read_object

REPORT, PAGE, ANSWERS = "report.json", "report.md", "evaluation_samples.jsonl"
SAMPLING_SETTINGS = (
    *("temperature", "temperatures", "max_prompt_tokens", "max_response_tokens", "long_responses", "seed"),
    *("engine", "rollout"),  # one setting: its name, and its name in older runs
    *("decode_weights", "min_responses", "max_responses", "samples_per_prompt", "deduplicate", "missing_eos_score"),
)
MOST_ROWS_BYTES = 2**28  # of metrics, samples or answers
MOST_TEXT_BYTES = 2**22  # of report.md or a recipe, in which paths and secrets are looked for
KL_COLUMNS = ("step", "ppo/kl_coef", "rollout/kl", "rollout/score", "ppo/approx_kl")


class PackageFiles:
    """The files of a package (`files`), and what is left out of it with the reasons (`left_out`).

    Raises UserError if a folder holds no finished stage, and for files of the run that cannot be read.
    """

    def __init__(self, config: PackageConfig, run: Path) -> None:
        self.files: dict[str, Content] = {}
        self.left_out: dict[str, str] = {}
        self._config, self._run = config, run
        self._stages = {stage: read_manifest(run / stage) for stage in BY_NAME if (run / stage / MANIFEST).is_file()}
        if not self._stages:
            raise UserError(f"{run}: holds no stage; name a run folder, for example runs/first")
        self._configs = {stage: read_yaml(run / stage / CONFIG) for stage in self._stages}
        recorded_runs = [str(values.get("run", "")) for values in self._configs.values()]
        roots = {
            root
            for recorded_run in recorded_runs
            if recorded_run
            for root in (recorded_run, str(Path(recorded_run).absolute()))
        }
        self.paths = PathMap(run, sorted(roots))
        self._originals: dict[str, str] = {}
        self._hashes: dict[str, str | None] = {}
        self._report: Report | None = None  # None if there is none of this format
        self._gates: list[str] = []
        report = self._add_evaluation()
        self._add_stage_files()
        steps = find_steps(run, report)
        self._add_settings(steps)
        self._add_labelling(self._add_data_facts(report))
        self._add_gate_records()
        self._add_pages(steps)

    @property
    def manifest_facts(self) -> dict[str, Any]:
        """The fields of the package's manifest except the files' hashes."""
        return {
            "run": self.paths.name,
            "packed_with": f"lora-rlhf {__version__}",
            "stages": {stage: manifest["id"] for stage, manifest in self._stages.items()},
            "left_out": self.left_out,
            "rewritten": self._originals,  # {file: sha256 before its paths were replaced}
        }

    def add_json(self, name: str, value: Any) -> None:
        """Adds a JSON file, with paths as the package writes them."""
        self.files[name] = (json.dumps(self.paths.without_paths(value), indent=2, ensure_ascii=False) + "\n").encode()

    def _add_text(self, name: str, path: Path) -> None:
        """Adds a text file of the run, with paths as the package writes them."""
        original = read_file(path, MOST_TEXT_BYTES)
        self.files[name] = self.paths.text_without_paths(original.decode(errors="replace")).encode()
        self._keep_hash(name, original)

    def _keep_hash(self, name: str, original: bytes) -> None:
        """Remembers the hash of the original file, if the packed one differs from it."""
        if self.files[name] != original:
            self._originals[name] = hashlib.sha256(original).hexdigest()

    def _add_evaluation(self) -> dict[str, Any] | None:
        """Adds report and samples; returns the report, of any format. The release note needs one of this format."""
        path = Path(self._config.report) if self._config.report else self._run
        path = path / REPORT if path.is_dir() else path
        if not path.is_file():
            if self._config.report:
                raise UserError(f"{path}: there is no such report")
            self.left_out["evaluation"] = f"{self.paths.name} was not evaluated"
            return None
        original = read_file(path, MOST_BYTES)
        try:
            self._report = read_report(path)
        except UserError as error:
            self.left_out["figures in the release note"] = self.paths.text_without_paths(str(error))
        report = read_object(path, "give another with --report, or evaluate again")
        self.add_json(f"evaluation/{REPORT}", report)
        self._keep_hash(f"evaluation/{REPORT}", original)
        if (page := path.with_name(PAGE)).is_file():
            self._add_text(f"evaluation/{PAGE}", page)
        if (answers := path.with_name(ANSWERS)).is_file():
            self._add_rows(f"evaluation/{ANSWERS}", answers)
        else:
            self.left_out["exact prompts of the evaluation"] = f"{ANSWERS} is not beside the report"
        return report

    def _add_stage_files(self) -> None:
        """Adds each stage's manifest, metrics and samples, and its adapters with --with_adapters."""
        for stage, manifest in self._stages.items():
            folder = self._run / stage
            self.add_json(f"stages/{stage}/{MANIFEST}", manifest)
            self._keep_hash(f"stages/{stage}/{MANIFEST}", read_file(folder / MANIFEST))
            for name in (METRICS, SAMPLES):
                if (folder / name).is_file():
                    self._add_rows(f"stages/{stage}/{name}", folder / name)
            adapters = [folder / name for name in (ADAPTER, *BY_NAME[stage].other_adapters)]
            require_no_link(*adapters)
            packed = [adapter for adapter in adapters if self._config.with_adapters and adapter.is_dir()]
            for path in (path for adapter in packed for path in adapter_files(adapter)):
                self._add_adapter(f"adapters/{stage}/{path.parent.name}/{path.name}", path, manifest["base"]["name"])
        if not self._config.with_adapters:
            self.left_out["weights"] = "packed with --with_adapters only"

    def _add_rows(self, name: str, path: Path) -> None:
        """Adds a file of rows as it is. UserError for one that is larger than any: zeros take no room on a disk."""
        require_size(path, MOST_ROWS_BYTES)
        self.files[name] = path

    def _add_adapter(self, name: str, path: Path, base: str) -> None:
        """Adds a file of an adapter. The base's folder on this machine, which PEFT writes, is replaced by its name."""
        if path.suffix != ".json":
            self.files[name] = path
            return
        settings = read_object(path, "restore that file") | {"base_model_name_or_path": base}
        self.add_json(name, settings)
        self._keep_hash(name, read_file(path))

    def _add_settings(self, steps: list[Step]) -> None:
        """Adds the configuration of each step, the sampling settings, and the schedule of the KL coefficient."""
        for step in steps:
            self.files[f"config/{step.name}.yaml"] = repeat_config(step, self.paths).encode()
        if (self._run / RECIPE).is_file():
            self._add_text(f"config/{RECIPE}", self._run / RECIPE)
        sampling = {
            step.name: {key: step.config[key] for key in SAMPLING_SETTINGS if key in step.config} for step in steps
        }
        self.add_json("config/sampling.json", {name: values for name, values in sampling.items() if values})
        metrics = self._run / PPO.name / METRICS
        if metrics.is_file():
            try:
                self.files["config/kl_schedule.csv"] = _kl_csv(read_metrics(metrics))
            except UserError as error:  # the stage was killed in its last line and not resumed
                fault = self.paths.text_without_paths(str(error))
                self.left_out["KL schedule"] = f"{PPO.name}/{METRICS} cannot be read ({fault})"

    def _add_data_facts(self, report: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Adds the facts of all data files; returns {data name: how labelers worked} of rankings."""
        facts, protocols = [], {}
        for file in self._list_data_files(report):
            self._hashes[self.paths.packaged_path(file.path)] = file.sha256
            try:
                data = read_data_facts(file, self._run, self.paths, self._config.with_texts)
            except UserError as error:
                self.left_out[f"data of {file.stage}: {file.name}"] = self.paths.text_without_paths(str(error))
                facts.append({"stage": file.stage, "name": file.name, "file": file.path, "sha256": file.sha256})
                continue
            facts.append(data.facts)
            if data.splits:
                lines = [json.dumps(row, ensure_ascii=False) for row in data.splits]
                self.files[f"data/splits/{file.stage}_{file.name}.jsonl"] = "\n".join([*lines, ""]).encode()
            if data.protocol is not None:
                protocols[file.name] = data.protocol
        self.add_json("data/files.json", facts)
        return protocols

    def _list_data_files(self, report: Mapping[str, Any] | None) -> list[DataFile]:
        """The data files that the stages and the evaluation read."""
        files = []
        for stage, manifest in self._stages.items():
            config = self._configs[stage]
            for name, record in manifest["data"].items():
                # only the data on which a stage trains have a split list
                split = "train" if name in BY_NAME[stage].may_train_on else None
                fraction = config.get("validation_fraction", 0.0) if split else 0.0
                files.append(
                    DataFile(
                        *(stage, name, record["path"], record["sha256"], config.get("format"), split, fraction),
                        columns=config.get("columns"),
                        from_run=record.get("from_run"),
                    )
                )
        evaluation_config, prompt_sets = _object_at(report, "config"), _object_at(report, "sets")
        for name, split in (("prompts", "evaluation"), ("selection_prompts", "selection")):
            if isinstance(path := evaluation_config.get(name), str):
                record, format = _object_at(prompt_sets, name.removesuffix("_prompts")), evaluation_config.get("format")
                columns, from_run = evaluation_config.get("columns"), record.get("from_run")
                recorded = DataFile("evaluate", name, path, record.get("sha256"), format, split, 0.0, columns, from_run)
                files.append(recorded)
        return files

    def _add_labelling(self, protocols: Mapping[str, Any]) -> None:
        """Adds the labelers' guidelines, and how they worked and agreed."""
        guidelines = None
        if self._config.guidelines is not None:
            try:
                guidelines_text = read_file(Path(self._config.guidelines), follow_links=True)
            except OSError as error:
                raise UserError(f"{self._config.guidelines}: cannot be read ({error.strerror})") from error
            self.files["labelling/guidelines.md"] = guidelines_text
            version = self._config.guidelines_version
            guidelines = {"sha256": hashlib.sha256(guidelines_text).hexdigest(), "version": version}
        else:
            self.left_out["labelling guidelines"] = "none were given with --guidelines"
        results = self._stages.get(REWARD.name, {}).get("results", {})
        agreement = {key: value for key, value in results.items() if key.startswith("label_agreement")}
        protocol = {"guidelines": guidelines, **protocols, "measured_by_the_reward_stage": agreement}
        self.add_json("labelling/protocol.json", protocol)

    def _add_gate_records(self) -> None:
        """Adds the records of the run's gates."""
        require_no_link(self._run / RECORD_FOLDER)
        for path in sorted((self._run / RECORD_FOLDER).glob("[!.]*.json")):
            try:
                record = read_gate_record(path)
            except UserError as error:
                self.left_out[f"gate record {path.name}"] = self.paths.text_without_paths(str(error))
                continue
            self.files[f"{RECORD_FOLDER}/{path.name}"] = read_file(path)
            self._gates.append(f"{path.name}: {summarize_record(record)}")

    def _add_pages(self, steps: list[Step]) -> None:
        """Adds the environment, the commands to repeat the run, and the release note."""
        versions = {stage: manifest.get("versions", {}) for stage, manifest in self._stages.items()}
        keys = ("versions", "processes", "git_commit", "seed", "base")
        environment = {
            stage: {key: manifest[key] for key in keys if key in manifest} | {"versions": versions[stage]}
            for stage, manifest in self._stages.items()
        }
        self.add_json("environment.json", environment)
        self.add_json(BILL, bill_of_materials(self._stages[list(self._stages)[-1]]["base"]))
        input_hashes = {
            name: self._hashes.get(name)
            for step in steps
            for name in _input_paths(self.paths.without_paths(step.config))
        }
        hash_lines = [f"{sha256}  {name}\n" for name, sha256 in sorted(input_hashes.items()) if sha256]
        self.files[f"{INPUTS}.sha256"] = "".join(hash_lines).encode()
        newest_versions = versions[list(self._stages)[-1]]
        self.files["commands.md"] = commands_page(self.paths.name, steps, input_hashes, newest_versions).encode()
        self.files["repeat.sh"] = repeat_script(steps).encode()
        note = release_note_text(self.paths.name, self._report, self.left_out, self._gates)
        self.files["release_note.md"] = self.paths.text_without_paths(note).encode()


def _kl_csv(metrics: list[dict[str, Any]]) -> bytes:
    """The KL's columns of metrics.jsonl as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(KL_COLUMNS)
    for row in metrics:
        rows.writerow([row.get(key, "") for key in KL_COLUMNS])
    return text.getvalue().encode()


def _object_at(values: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    """The object under a key; empty if there is no report, or no object under that key."""
    value = (values or {}).get(key)
    return value if isinstance(value, Mapping) else {}


def _input_paths(config: Mapping[str, Any]) -> list[str]:
    """The paths in inputs/ that a configuration names."""
    values = [item for value in config.values() for item in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, str) and value.startswith(f"{INPUTS}/")]
