"""Opens the base of a run, and refuses another: every stage of a run shares one base and one template."""

from pathlib import Path
from typing import Any

from lora_rlhf.model.base import BaseSpec, hash_source, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

SPEC_FIELDS = ("name", "quantization", "compute_dtype", "trust_remote_code")
COMPUTED_IN = "computed_in"


def describe_base(model: SharedModel) -> dict[str, Any]:
    """The record of the base in a manifest: enough to open it again and to distinguish it from any other.

    `computed_in` is the dtype that "auto" chose, in which rounded weights are read. It tells which model was trained; a
    run may continue in another dtype.
    """
    base = model.base
    spec = {name: getattr(base.spec, name) for name in SPEC_FIELDS}
    identity = {"source_hash": base.source_hash, "chat_template": model.tokenizer.chat_template}
    return {**spec, **identity, COMPUTED_IN: str(model.causal.dtype).removeprefix("torch.")}


def require_trust(record: dict[str, Any], trust_remote_code: bool) -> None:
    """UserError if a manifest needs the base's own code to run and the user has not allowed it."""
    if record["trust_remote_code"] and not trust_remote_code:
        raise UserError(
            f"base model {record['name']!r}: the run was made with this model's own code, which would run here; give "
            "--trust_remote_code if you trust its authors and whom you have the run from"
        )


def require_base_folder(record: dict[str, Any]) -> None:
    """UserError if the base was a folder that no longer exists, neither there nor relative to the run."""
    if "from_run" in record and not Path(record["name"]).expanduser().exists():
        raise UserError(
            f"base model {record['name']!r}: the run was trained on this folder, which is no longer there; put it "
            f"back, or link it: ln -s WHERE_IT_IS_NOW {record['name']}. `reward` and `ppo` take --model, too"
        )


def open_base(
    record: dict[str, Any], device: str, gradient_checkpointing: bool = False, trust_remote_code: bool = False
) -> SharedModel:
    """Loads the base that a manifest describes.

    UserError, with both hashes, if its files are not those of the run. UserError, before anything is loaded, if it has
    its own code that the user has not allowed to run.
    """
    require_trust(record, trust_remote_code)
    require_base_folder(record)
    spec = BaseSpec(**{name: record[name] for name in SPEC_FIELDS})
    model = SharedModel(load_base(spec, device, record["source_hash"]))
    model.tokenizer.chat_template = record["chat_template"]
    if gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def move_base(name: str | None, record: dict[str, Any], parent: str) -> None:
    """If `name` is given, the record's base is opened there from now on. UserError unless its files are the same."""
    if name is None or name == record["name"]:
        return
    if hash_source(name) != record["source_hash"]:
        raise UserError(
            f"--model is {name!r}, but {parent} was trained on {record['name']!r}, whose files are others; leave "
            "--model out, or train all stages again on the new base"
        )
    record["name"] = name
