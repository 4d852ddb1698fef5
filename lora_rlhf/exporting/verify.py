"""`lora-rlhf export --verify`: checks the files of an export, and measures it again with plain transformers."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.manifest import MANIFEST, hash_folder, read_export_manifest
from lora_rlhf.exporting.parity import LEAST_KL
from lora_rlhf.exporting.reward import LEAST_DIFFERENCE
from lora_rlhf.model.devices import resolve_device
from lora_rlhf.system.errors import Stopped, UserError

log = logging.getLogger("lora_rlhf")

CHECK_SCRIPTS = {"merged": "lora_rlhf.exporting.plain_check", "classifier": "lora_rlhf.exporting.plain_score_check"}


def verify_export(config: ExportConfig) -> dict[str, Any]:
    """The figures of the export in `config.folder`, from a process that can import neither peft nor this package.

    Raises UserError if the folder is no whole export, naming every missing, unlisted or changed file, and if code of
    the model is not allowed. Raises Stopped (exit 1) if the model is further from the recorded one than the limits
    allow.
    """
    folder = Path(config.folder)
    manifest = read_export_manifest(folder)
    _require_files(folder, manifest["files"])
    has_own_code = manifest["source"]["base"]["trust_remote_code"]
    if has_own_code and not config.trust_remote_code:
        raise UserError(f"{folder}: comes with the model's own code; give --trust_remote_code if you trust its authors")
    kind = manifest.get("kind")
    if kind not in CHECK_SCRIPTS or not manifest["parity"]["measured"]:
        reason = (
            "it was never compared with the trained model"
            if kind in CHECK_SCRIPTS
            else f"transformers alone loads no {kind}"
        )
        log.info("%s: every file is as it was written; %s", folder, reason)
        return {"files": len(manifest["files"])}
    figures = _run_check_script(CHECK_SCRIPTS[kind], folder, str(resolve_device(config.device)), has_own_code)
    find_faults = _model_faults if kind == "merged" else _score_faults
    if faults := find_faults(config, manifest["parity"], figures):
        raise Stopped(f"{folder}: {json.dumps(figures)}\nnot the model that was exported: " + "; ".join(faults))
    return {"files": len(manifest["files"]), **figures}


def _require_files(folder: Path, recorded_hashes: dict[str, str]) -> None:
    """Raises UserError unless the folder holds exactly the files that the manifest lists, byte for byte."""
    current_hashes = hash_folder(folder, {})
    faults = [
        *(f"{name} is missing" for name in sorted(recorded_hashes.keys() - current_hashes.keys())),
        *(f"{name} is not listed" for name in sorted(current_hashes.keys() - recorded_hashes.keys())),
        *(
            f"{name} has sha256 {current_hashes[name][:16]}, and {recorded_hashes[name][:16]} was written"
            for name in sorted(current_hashes.keys() & recorded_hashes.keys())
            if current_hashes[name] != recorded_hashes[name]
        ),
    ]
    if faults:
        raise UserError(f"{folder / MANIFEST} does not describe this folder: {'; '.join(faults)}; export it again")


def _run_check_script(script: str, folder: Path, device: str, trust_remote_code: bool) -> dict[str, Any]:
    """Runs the script on the folder in a fresh process; returns the figures that it prints."""
    spec = importlib.util.find_spec(script)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    command = [sys.executable, "-I", "-c", source, str(folder.resolve()), device, str(trust_remote_code)]
    log.info("%s: loading it in plain transformers", folder)
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder.resolve().parent, check=False)
    if process.returncode != 0:
        last_line = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise Stopped(f"{folder}: does not load in plain transformers: {last_line}")
    figures: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return figures


def _model_faults(config: ExportConfig, parity: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """Why the model is further from the recorded one than allowed; a forced export may be as far as it was."""
    max_kl = max(config.max_kl_share * parity["adapter_effect"]["kl_per_token"], LEAST_KL)
    min_agreement = config.min_agreement
    if parity["forced"]:
        max_kl, min_agreement = (
            max(max_kl, 1.1 * parity["export"]["kl_per_token"]),
            min(min_agreement, parity["export"]["top1_agreement"]),
        )
    faults = []
    if not figures["kl_per_token"] <= max_kl:
        faults.append(f"KL per token is at least {figures['kl_per_token']:.3g} nats, the most is {max_kl:.3g}")
    if not figures["top1_agreement"] >= min_agreement:
        faults.append(
            f"the same most probable token at {figures['top1_agreement']:.2%}, the least is {min_agreement:.2%}"
        )
    return faults


def _score_faults(config: ExportConfig, parity: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """Why the scores of a reward model are further from the recorded ones than allowed."""
    max_difference = max(config.max_score_share * parity["score_spread"], LEAST_DIFFERENCE)
    if parity["forced"]:
        max_difference = max(max_difference, 1.1 * parity["export"]["score_difference"])
    if figures["score_difference"] <= max_difference:
        return []
    return [f"scores differ by {figures['score_difference']:.3g} on average, the most is {max_difference:.3g}"]
