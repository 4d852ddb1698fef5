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
from lora_rlhf.evaluate.report_model import Report, read_report
from lora_rlhf.release.bundle import Content
from lora_rlhf.release.config import PackageConfig
from lora_rlhf.release.gate import summary
from lora_rlhf.release.note import release_note
from lora_rlhf.release.places import INPUTS, Places
from lora_rlhf.release.record import FOLDER as GATES
from lora_rlhf.release.record import read_record
from lora_rlhf.release.records import DataFile, tell_data
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
        self.places = Places(run, sorted(roots))
        self._originals: dict[str, str] = {}
        self._hashes: dict[str, str | None] = {}
        self._readable: Report | None = None  # the report, where it is of this format
        self._gates: list[str] = []
        report = self._evaluation()
        self._stage_files()
        steps = find_steps(run, report)
        self._settings(steps)
        told = self._data(report)
        self._labelling(told)
        self._gate_records()
        self._pages(steps)

    @property
    def about(self) -> dict[str, Any]:
        """What the package's manifest says besides the files' hashes."""
        return {
            "run": self.places.name,
            "packed_with": f"lora-rlhf {__version__}",
            "stages": {stage: manifest["id"] for stage, manifest in self._stages.items()},
            "left_out": self.left_out,
            "rewritten": self._originals,  # {file: sha256 that it had}, where places were told otherwise
        }

    def add_json(self, place: str, value: Any) -> None:
        """A JSON file, its places told as the package tells them."""
        self.files[place] = (json.dumps(self.places.clean(value), indent=2, ensure_ascii=False) + "\n").encode()

    def _add_text(self, place: str, path: Path) -> None:
        """A text file of the run, its places told likewise; where that changed it, its own hash is kept."""
        raw = path.read_bytes()
        self.files[place] = self.places.clean_text(raw.decode(errors="replace")).encode()
        self._keep_hash(place, raw)

    def _keep_hash(self, place: str, raw: bytes) -> None:
        if self.files[place] != raw:
            self._originals[place] = hashlib.sha256(raw).hexdigest()

    def _evaluation(self) -> dict[str, Any] | None:
        """Adds report and samples; returns the report, of whatever format. The note is made of one of this format."""
        path = Path(self._config.report) if self._config.report else self._run
        path = path / REPORT if path.is_dir() else path
        if not path.is_file():
            if self._config.report:
                raise UserError(f"{path}: there is no such report")
            self.left_out["evaluation"] = f"{self.places.name} was not evaluated"
            return None
        raw = path.read_bytes()
        try:
            self._readable = read_report(path)
        except UserError as error:
            self.left_out["figures in the release note"] = self.places.clean_text(str(error))
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

    def _add_adapter(self, place: str, path: Path, base: str) -> None:
        """A file of an adapter. PEFT notes the base's folder on this machine: its name stands there instead."""
        if path.suffix != ".json":
            self.files[place] = path
            return
        noted = read_object(path, "restore that file") | {"base_model_name_or_path": base}
        self.add_json(place, noted)
        self._keep_hash(place, path.read_bytes())

    def _settings(self, steps: list[Step]) -> None:
        for step in steps:
            self.files[f"config/{step.name}.yaml"] = afresh(step, self.places).encode()
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
        for one in self._data_files(report):
            self._hashes[self.places.tell(one.path)] = one.sha256
            try:
                told = tell_data(one, self._run, self.places, self._config.with_texts)
            except UserError as error:
                self.left_out[f"data of {one.stage}: {one.name}"] = self.places.clean_text(str(error))
                facts.append({"stage": one.stage, "name": one.name, "file": one.path, "sha256": one.sha256})
                continue
            facts.append(told.facts)
            if told.splits:
                lines = [json.dumps(row, ensure_ascii=False) for row in told.splits]
                self.files[f"data/splits/{one.stage}_{one.name}.jsonl"] = "\n".join([*lines, ""]).encode()
            if told.protocol is not None:
                protocols[one.name] = told.protocol
        self.add_json("data/files.json", facts)
        return protocols

    def _data_files(self, report: Mapping[str, Any] | None) -> list[DataFile]:
        found = []
        for stage, manifest in self._stages.items():
            config = self._configs[stage]
            for name, record in manifest["data"].items():
                split = "train" if name == BY_NAME[stage].trains_on else None  # what has a split list
                fraction = config.get("validation_fraction", 0.0) if split else 0.0
                found.append(
                    DataFile(stage, name, record["path"], record["sha256"], config.get("format"), split, fraction)
                )
        settings, sets = _object(report, "config"), _object(report, "sets")
        for name, split in (("prompts", "evaluation"), ("selection_prompts", "selection")):
            if isinstance(path := settings.get(name), str):
                sha256 = _object(sets, name.removesuffix("_prompts")).get("sha256")
                found.append(DataFile("evaluate", name, path, sha256, settings.get("format"), split))
        return found

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
                self.left_out[f"gate record {path.name}"] = self.places.clean_text(str(error))
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
        needed = {name: self._hashes.get(name) for step in steps for name in _inputs(self.places.clean(step.config))}
        known = [f"{sha256}  {name}\n" for name, sha256 in sorted(needed.items()) if sha256]
        self.files[f"{INPUTS}.sha256"] = "".join(known).encode()
        newest = versions[list(self._stages)[-1]]
        self.files["commands.md"] = commands_page(self.places.name, steps, needed, newest).encode()
        self.files["repeat.sh"] = repeat_script(steps).encode()
        note = release_note(self.places.name, self._readable, self.left_out, self._gates)
        self.files["release_note.md"] = self.places.clean_text(note).encode()


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
    found = (values or {}).get(key)
    return found if isinstance(found, Mapping) else {}


def _inputs(config: Mapping[str, Any]) -> list[str]:
    """What a configuration reads from inputs/."""
    values = [item for value in config.values() for item in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, str) and value.startswith(f"{INPUTS}/")]
