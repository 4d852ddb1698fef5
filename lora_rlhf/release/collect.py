"""The files of a package, gathered from a run folder."""

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
from lora_rlhf.release.bundle import Content
from lora_rlhf.release.config import PackageConfig
from lora_rlhf.release.data_facts import DataFile, describe_data
from lora_rlhf.release.gate import summary
from lora_rlhf.release.note import release_note
from lora_rlhf.release.paths import INPUTS, PathMap
from lora_rlhf.release.record import FOLDER as GATES
from lora_rlhf.release.record import read_record
from lora_rlhf.release.repeat import RECIPE, Step, afresh, commands_page, find_steps, repeat_script
from lora_rlhf.runs.folder import ADAPTER, CONFIG, METRICS, SAMPLES
from lora_rlhf.runs.manifest import MANIFEST, read_manifest
from lora_rlhf.system.errors import UserError
from lora_rlhf.system.untrusted import object_of, read_object

REPORT, PAGE, ANSWERS = "report.json", "report.md", "evaluation_samples.jsonl"
SAMPLING = (
    *("temperature", "temperatures", "max_prompt_tokens", "max_response_tokens", "long_responses", "seed"),
    *("engine", "rollout"),  # one setting: its name, and the one that it has in older runs
    *("decode_weights", "min_responses", "max_responses", "samples_per_prompt", "deduplicate", "missing_eos_score"),
)
KL_SCHEDULE = ("step", "ppo/kl_coef", "rollout/kl", "rollout/score", "ppo/approx_kl")


class Collection:
    """What goes into a package: `files`, and under `left_out` what does not, with the reason.

    UserError for a folder that holds no finished stage, and for files of the run that cannot be read.
    """

    def __init__(self, config: PackageConfig, run: Path) -> None:
        self.files: dict[str, Content] = {}
        self.left_out: dict[str, str] = {}
        self._config, self._run = config, run
        self._stages = {stage: read_manifest(run / stage) for stage in BY_NAME if (run / stage / MANIFEST).is_file()}
        if not self._stages:
            raise UserError(f"{run}: holds no stage; name a run folder, for example runs/first")
        self._configs = {stage: read_yaml(run / stage / CONFIG) for stage in self._stages}
        recorded = [str(values.get("run", "")) for values in self._configs.values()]
        roots = {path for given in recorded if given for path in (given, str(Path(given).absolute()))}
        self.paths = PathMap(run, sorted(roots))
        self._originals: dict[str, str] = {}
        self._hashes: dict[str, str | None] = {}
        self._readable: Report | None = None  # the report, where it is of this format
        self._gates: list[str] = []
        report = self._evaluation()
        self._stage_files()
        steps = find_steps(run, report)
        self._settings(steps)
        self._labelling(self._data(report))
        self._gate_records()
        self._pages(steps)

    @property
    def about(self) -> dict[str, Any]:
        """What the package's manifest says besides the files' hashes."""
        return {
            "run": self.paths.name,
            "packed_with": f"lora-rlhf {__version__}",
            "stages": {stage: manifest["id"] for stage, manifest in self._stages.items()},
            "left_out": self.left_out,
            "rewritten": self._originals,  # {file: sha256 that it had}, where paths were written otherwise
        }

    def add_json(self, name: str, value: Any) -> None:
        """A JSON file, its paths as the package writes them."""
        self.files[name] = (json.dumps(self.paths.clean(value), indent=2, ensure_ascii=False) + "\n").encode()

    def _add_text(self, name: str, path: Path) -> None:
        """A text file of the run, its paths likewise; where that changed it, its own hash is kept."""
        raw = path.read_bytes()
        self.files[name] = self.paths.clean_text(raw.decode(errors="replace")).encode()
        self._keep_hash(name, raw)

    def _keep_hash(self, name: str, raw: bytes) -> None:
        if self.files[name] != raw:
            self._originals[name] = hashlib.sha256(raw).hexdigest()

    def _evaluation(self) -> dict[str, Any] | None:
        """Adds report and samples; returns the report, of whatever format. The note is made of one of this format."""
        path = Path(self._config.report) if self._config.report else self._run
        path = path / REPORT if path.is_dir() else path
        if not path.is_file():
            if self._config.report:
                raise UserError(f"{path}: there is no such report")
            self.left_out["evaluation"] = f"{self.paths.name} was not evaluated"
            return None
        raw = path.read_bytes()
        try:
            self._readable = read_report(path)
        except UserError as error:
            self.left_out["figures in the release note"] = self.paths.clean_text(str(error))
        report = read_object(path, "give another with --report, or evaluate again")
        self.add_json(f"evaluation/{REPORT}", report)
        self._keep_hash(f"evaluation/{REPORT}", raw)
        if (page := path.with_name(PAGE)).is_file():
            self._add_text(f"evaluation/{PAGE}", page)
        if (answers := path.with_name(ANSWERS)).is_file():
            self.files[f"evaluation/{ANSWERS}"] = answers.read_bytes()
        else:
            self.left_out["exact prompts of the evaluation"] = f"{ANSWERS} is not beside the report"
        return report

    def _stage_files(self) -> None:
        for stage, manifest in self._stages.items():
            folder = self._run / stage
            self.add_json(f"stages/{stage}/{MANIFEST}", manifest)
            self._keep_hash(f"stages/{stage}/{MANIFEST}", (folder / MANIFEST).read_bytes())
            for name in (METRICS, SAMPLES):
                if (folder / name).is_file():
                    self.files[f"stages/{stage}/{name}"] = (folder / name).read_bytes()
            folders = [folder / name for name in (ADAPTER, *BY_NAME[stage].other_adapters)]
            adapters = [path for adapter in folders for path in sorted(adapter.glob("*"))]
            for path in adapters if self._config.with_adapters else []:
                self._add_adapter(f"adapters/{stage}/{path.parent.name}/{path.name}", path, manifest["base"]["name"])
        if not self._config.with_adapters:
            self.left_out["weights"] = "packed with --with_adapters only"

    def _add_adapter(self, name: str, path: Path, base: str) -> None:
        """A file of an adapter. PEFT notes the base's folder on this machine: its name stands there instead."""
        if path.suffix != ".json":
            self.files[name] = path
            return
        settings = read_object(path, "restore that file") | {"base_model_name_or_path": base}
        self.add_json(name, settings)
        self._keep_hash(name, path.read_bytes())

    def _settings(self, steps: list[Step]) -> None:
        for step in steps:
            self.files[f"config/{step.name}.yaml"] = afresh(step, self.paths).encode()
        if (self._run / RECIPE).is_file():
            self._add_text(f"config/{RECIPE}", self._run / RECIPE)
        sampling = {step.name: {key: step.config[key] for key in SAMPLING if key in step.config} for step in steps}
        self.add_json("config/sampling.json", {name: values for name, values in sampling.items() if values})
        metrics = self._run / PPO.name / METRICS
        if metrics.is_file():
            try:
                self.files["config/kl_schedule.csv"] = _kl_schedule(metrics.read_bytes())
            except ValueError as error:  # a kill cut the last line off, and nobody went on with the stage
                self.left_out["KL schedule"] = f"{PPO.name}/{METRICS} cannot be read ({error})"

    def _data(self, report: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
        """Adds what is known of the data; returns {name of the data: how labelers worked} of rankings."""
        facts, protocols = [], {}
        for file in self._data_files(report):
            self._hashes[self.paths.packaged(file.path)] = file.sha256
            try:
                data = describe_data(file, self._run, self.paths, self._config.with_texts)
            except UserError as error:
                self.left_out[f"data of {file.stage}: {file.name}"] = self.paths.clean_text(str(error))
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

    def _data_files(self, report: Mapping[str, Any] | None) -> list[DataFile]:
        files = []
        for stage, manifest in self._stages.items():
            config = self._configs[stage]
            for name, record in manifest["data"].items():
                split = "train" if name == BY_NAME[stage].trains_on else None  # what has a split list
                fraction = config.get("validation_fraction", 0.0) if split else 0.0
                files.append(
                    DataFile(
                        *(stage, name, record["path"], record["sha256"], config.get("format"), split, fraction),
                        columns=config.get("columns"),
                    )
                )
        settings, sets = _object(report, "config"), _object(report, "sets")
        for name, split in (("prompts", "evaluation"), ("selection_prompts", "selection")):
            if isinstance(path := settings.get(name), str):
                sha256 = _object(sets, name.removesuffix("_prompts")).get("sha256")
                columns = settings.get("columns")
                files.append(DataFile("evaluate", name, path, sha256, settings.get("format"), split, columns=columns))
        return files

    def _labelling(self, protocols: Mapping[str, Any]) -> None:
        guidelines = None
        if self._config.guidelines is not None:
            try:
                raw = Path(self._config.guidelines).read_bytes()
            except OSError as error:
                raise UserError(f"{self._config.guidelines}: cannot be read ({error.strerror})") from error
            self.files["labelling/guidelines.md"] = raw
            version = self._config.guidelines_version
            guidelines = {"sha256": hashlib.sha256(raw).hexdigest(), "version": version}
        else:
            self.left_out["labelling guidelines"] = "none were given with --guidelines"
        results = self._stages.get(REWARD.name, {}).get("results", {})
        measured = {key: value for key, value in results.items() if key.startswith("label_agreement")}
        protocol = {"guidelines": guidelines, **protocols, "measured_by_the_reward_stage": measured}
        self.add_json("labelling/protocol.json", protocol)

    def _gate_records(self) -> None:
        for path in sorted((self._run / GATES).glob("[!.]*.json")):
            try:
                record = read_record(path)
            except UserError as error:
                self.left_out[f"gate record {path.name}"] = self.paths.clean_text(str(error))
                continue
            self.files[f"{GATES}/{path.name}"] = path.read_bytes()
            self._gates.append(f"{path.name}: {summary(record)}")

    def _pages(self, steps: list[Step]) -> None:
        versions = {stage: manifest.get("versions", {}) for stage, manifest in self._stages.items()}
        keys = ("versions", "processes", "git_commit", "seed", "base")
        made = {
            s: {key: m[key] for key in keys if key in m} | {"versions": versions[s]} for s, m in self._stages.items()
        }
        self.add_json("environment.json", made)
        needed = {name: self._hashes.get(name) for step in steps for name in _inputs(self.paths.clean(step.config))}
        known = [f"{sha256}  {name}\n" for name, sha256 in sorted(needed.items()) if sha256]
        self.files[f"{INPUTS}.sha256"] = "".join(known).encode()
        newest = versions[list(self._stages)[-1]]
        self.files["commands.md"] = commands_page(self.paths.name, steps, needed, newest).encode()
        self.files["repeat.sh"] = repeat_script(steps).encode()
        note = release_note(self.paths.name, self._readable, self.left_out, self._gates)
        self.files["release_note.md"] = self.paths.clean_text(note).encode()


def _kl_schedule(metrics: bytes) -> bytes:
    """The KL's part of metrics.jsonl as CSV. ValueError for a line that is no object."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(KL_SCHEDULE)
    for line in metrics.splitlines():
        row = object_of(line)
        rows.writerow([row.get(key, "") for key in KL_SCHEDULE])
    return text.getvalue().encode()


def _object(values: Mapping[str, Any] | None, key: str) -> Mapping[str, Any]:
    """The object under a key of what may be no report, or one of another format; empty where there is none."""
    value = (values or {}).get(key)
    return value if isinstance(value, Mapping) else {}


def _inputs(config: Mapping[str, Any]) -> list[str]:
    """What a configuration reads from inputs/."""
    values = [item for value in config.values() for item in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, str) and value.startswith(f"{INPUTS}/")]
