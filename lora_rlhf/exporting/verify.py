"""`lora-rlhf export --verify`: the files of an export are those that were written, and plain transformers agrees."""

import importlib.util
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_rlhf.exporting.config import ExportConfig
from lora_rlhf.exporting.manifest import MANIFEST, hash_folder, read_manifest
from lora_rlhf.exporting.parity import LEAST_KL
from lora_rlhf.exporting.reward import LEAST_DIFFERENCE
from lora_rlhf.model.base import resolve_device
from lora_rlhf.system.errors import Stopped, UserError

log = logging.getLogger("lora_rlhf")

SCRIPTS = {"merged": "lora_rlhf.exporting.plain_check", "classifier": "lora_rlhf.exporting.plain_score_check"}


def verify(config: ExportConfig) -> dict[str, Any]:
    """The figures of the export in `config.folder`, from a process that can import neither peft nor this package.

    UserError for a folder that is not a whole export, with every file that is missing, new or another than was
    written, and for code of the model's own that nobody allowed. Stopped (exit 1) where the model is further from what
    was recorded than the limits allow.
    """
    folder = Path(config.folder)
    manifest = read_manifest(folder)
    _require_files(folder, manifest["files"])
    trusted = manifest["source"]["base"]["trust_remote_code"]
    if trusted and not config.trust_remote_code:
        raise UserError(f"{folder}: comes with the model's own code; give --trust_remote_code if you trust its authors")
    kind = manifest.get("kind")
    if kind not in SCRIPTS or not manifest["parity"]["measured"]:
        why = (
            "it was never compared with the trained model" if kind in SCRIPTS else f"transformers alone loads no {kind}"
        )
        log.info("%s: every file is as it was written; %s", folder, why)
        return {"files": len(manifest["files"])}
    figures = _measure_plainly(SCRIPTS[kind], folder, str(resolve_device(config.device)), trusted)
    too_far = _too_far if kind == "merged" else _scores_too_far
    if faults := too_far(config, manifest["parity"], figures):
        raise Stopped(f"{folder}: {json.dumps(figures)}\nnot the model that was exported: " + "; ".join(faults))
    return {"files": len(manifest["files"]), **figures}


def _require_files(folder: Path, recorded: dict[str, str]) -> None:
    """UserError unless the folder holds just the files that the manifest lists, byte for byte."""
    present = hash_folder(folder, {})
    faults = [
        *(f"{name} is missing" for name in sorted(recorded.keys() - present.keys())),
        *(f"{name} is not listed" for name in sorted(present.keys() - recorded.keys())),
        *(
            f"{name} has sha256 {present[name][:16]}, and {recorded[name][:16]} was written"
            for name in sorted(present.keys() & recorded.keys())
            if present[name] != recorded[name]
        ),
    ]
    if faults:
        raise UserError(f"{folder / MANIFEST} does not describe this folder: {'; '.join(faults)}; export it again")


def _measure_plainly(script: str, folder: Path, device: str, trust_remote_code: bool) -> dict[str, Any]:
    """What the script prints of the folder."""
    spec = importlib.util.find_spec(script)
    assert spec is not None and spec.origin is not None
    source = Path(spec.origin).read_text()
    command = [sys.executable, "-I", "-c", source, str(folder.resolve()), device, str(trust_remote_code)]
    log.info("%s: loading it in plain transformers", folder)
    process = subprocess.run(command, capture_output=True, text=True, cwd=folder.resolve().parent, check=False)
    if process.returncode != 0:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise Stopped(f"{folder}: does not load in plain transformers: {last}")
    figures: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    return figures


def _too_far(config: ExportConfig, parity: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """Where the model is further from the recorded one than it may be, or, if it was forced, than it was."""
    most = max(config.max_kl_share * parity["adapter_effect"]["kl_per_token"], LEAST_KL)
    least = config.min_agreement
    if parity["forced"]:
        most, least = max(most, 1.1 * parity["export"]["kl_per_token"]), min(least, parity["export"]["top1_agreement"])
    faults = []
    if not figures["kl_per_token"] <= most:
        faults.append(f"KL per token is at least {figures['kl_per_token']:.3g} nats, the most is {most:.3g}")
    if not figures["top1_agreement"] >= least:
        faults.append(f"the same most probable token at {figures['top1_agreement']:.2%}, the least is {least:.2%}")
    return faults


def _scores_too_far(config: ExportConfig, parity: dict[str, Any], figures: dict[str, float]) -> list[str]:
    """The same of a reward model's scores."""
    most = max(config.max_score_share * parity["score_spread"], LEAST_DIFFERENCE)
    if parity["forced"]:
        most = max(most, 1.1 * parity["export"]["score_difference"])
    if figures["score_difference"] <= most:
        return []
    return [f"scores differ by {figures['score_difference']:.3g} on average, the most is {most:.3g}"]
