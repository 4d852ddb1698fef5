"""An adapter folder from anywhere is plain LoRA that loads as it is written, or one UserError: nothing in between."""

import json
import os
import random
import shutil
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lora_rlhf.model.adapters import LoraSettings, read_adapter, require_fit
from lora_rlhf.model.base import BaseSpec, load_base
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
Header = dict[str, Any]
Fitting = tuple[LoraConfig, dict[str, Tensor]]


def fresh(tiny_model: Callable[[str], Path], name: str = "llama") -> SharedModel:
    return SharedModel(load_base(BaseSpec(str(tiny_model(name)), "none"), "cpu"))


@pytest.fixture(scope="module")
def model(tiny_model: Callable[[str], Path]) -> SharedModel:
    """A tiny model with the roles sft and reward, to which tests add none."""
    made = fresh(tiny_model)
    torch.manual_seed(0)
    for role in ("sft", "reward"):
        made.add_role(role, LoraSettings(rank=4, alpha=8, dropout=0.25), head=role == "reward")
        for name, parameter in made.named_parameters_of(role):
            if ".lora_B." in name:
                parameter.data.normal_()
    return made


@pytest.fixture
def adapter(model: SharedModel, tmp_path: Path) -> Path:
    """The folder of the reward role's adapter, to be spoiled."""
    model.save_role("reward", tmp_path / "adapter")
    return tmp_path / "adapter"


def configure(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def parts(folder: Path) -> tuple[Header, bytes]:
    """Header and body of the weights, read as the format's description has it and without its library."""
    raw = (folder / WEIGHTS).read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def write_parts(folder: Path, header: Header | bytes, body: bytes) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(raw)) + raw + body)


def tensors(folder: Path) -> dict[str, Tensor]:
    header, body = parts(folder)
    return {
        name: torch.frombuffer(bytearray(body[slice(*entry["data_offsets"])]), dtype=FLOATS[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


# What plain LoRA is, and loads


def test_an_adapter_of_this_project_is_read_as_it_was_written(model: SharedModel, adapter: Path) -> None:
    config, state = read_adapter(adapter)
    assert same(state, model.adapter_state("reward")) and same(state, tensors(adapter))
    assert (config.r, config.lora_alpha, config.lora_dropout, config.use_rslora) == (4, 8, 0.25, False)
    assert config.target_modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("task", [None, "CAUSAL_LM", "SEQ_CLS"])
def test_an_adapter_that_plain_peft_wrote_loads(
    tiny_model: Callable[[str], Path], tmp_path: Path, dtype: torch.dtype, task: str | None
) -> None:
    """Without a task type PEFT adds the base's class, and for a classifier the names of two heads."""
    classifier = task == "SEQ_CLS"
    kind, labels = (AutoModelForSequenceClassification, {"num_labels": 1}) if classifier else (AutoModelForCausalLM, {})
    base = kind.from_pretrained(tiny_model("llama"), dtype=dtype, **labels)
    settings = LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], use_rslora=True, task_type=task)
    torch.manual_seed(1)
    made = get_peft_model(base, settings)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    made = made.to(dtype)
    made.save_pretrained(tmp_path / "plain")
    written = tensors(tmp_path / "plain")
    assert {tensor.dtype for tensor in written.values()} == {dtype}
    assert same(read_adapter(tmp_path / "plain")[1], written)
    fields = json.loads((tmp_path / "plain" / CONFIG).read_text())
    assert (fields["auto_mapping"] is None) == (task is not None)
    assert fields["modules_to_save"] == (["classifier", "score"] if classifier else None)
    model = fresh(tiny_model)
    model.load_role("plain", tmp_path / "plain")
    loaded = model.adapter_state("plain")
    assert same(loaded, {name: tensor.float() for name, tensor in written.items()})
    assert any(name.endswith("score.weight") for name in loaded) == classifier


def test_an_old_and_a_new_peft_are_read(adapter: Path) -> None:
    """PEFT 0.3 wrote few fields, later ones write more: what is empty or at its default is nothing."""
    fields = json.loads((adapter / CONFIG).read_text())
    old = {name: fields[name] for name in ("r", "lora_alpha", "target_modules", "bias", "peft_type", "task_type")}
    (adapter / CONFIG).write_text(json.dumps(old | {"enable_lora": None, "merge_weights": False}))
    assert read_adapter(adapter)[0].r == 4
    (adapter / CONFIG).write_text(json.dumps(fields | {"from_the_future": None, "also_new": False}))
    assert read_adapter(adapter)[0].r == 4


def test_weights_need_not_be_aligned(adapter: Path) -> None:
    written, (header, body) = tensors(adapter), parts(adapter)
    raw = json.dumps(header).encode()
    write_parts(adapter, raw + b" " * (1 + len(raw) % 2), body)
    assert len(raw) + 1 + len(raw) % 2 & 1
    assert same(read_adapter(adapter)[1], written)


def test_links_are_followed_as_the_hubs_cache_is_made_of_them(adapter: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (snapshot / name).symlink_to(Path("../../adapter") / name)
    (tmp_path / "linked").symlink_to(snapshot)
    assert same(read_adapter(tmp_path / "linked")[1], tensors(adapter))


def test_what_the_configuration_names_is_neither_followed_nor_kept(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("something was opened on the network")

    monkeypatch.setattr(socket, "socket", refuse)
    configure(adapter, base_model_name_or_path="../../somebody/else", revision="main", peft_version="99.0.0")
    config, _ = read_adapter(adapter)
    assert (config.base_model_name_or_path, config.revision, config.peft_version) != (
        *("../../somebody/else", "main", "99.0.0"),
    )
    assert config.base_model_name_or_path is None and config.revision is None and config.auto_mapping is None


# Configurations that are refused

NOT_PLAIN: dict[str, Any] = {
    "layer_replication": [[0, 2], [0, 2]],
    "rank_pattern": {"(x+x+)+y": 10**9},
    "alpha_pattern": {"q_proj": 1e30},
    "layers_to_transform": [0],
    "layers_pattern": "(x+x+)+y",
    "exclude_modules": "((a*)*)*b",
    "trainable_token_indices": [0, 1],
    "target_parameters": ["q_proj.weight"],
    "modules_to_save": ["score", "lm_head"],
    "auto_mapping": {"base_model_class": "system", "parent_library": "os"},
    "megatron_config": {"a": 1},
    "megatron_core": "antigravity",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "loftq_config": {"loftq_bits": 4},
    "eva_config": {"rho": 2.0},
    "corda_config": {"corda_method": "ipm"},
    "kasa_config": {},  # empty, and still switched on
    "monteclora_config": {"num_samples": 8},
    "arrow_config": {"top_k": 3},
    "alora_invocation_tokens": [],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "use_dora": True,
    "lora_bias": True,
    "ensure_weight_tying": True,
    "bias": "lora_only",
    "init_lora_weights": "pissa",
    "peft_type": "IA3",
    "from_the_future": 3,
    "inference_mode": ["true"],
}
OUT_OF_RANGE: list[tuple[str, Any]] = [
    *(("r", value) for value in (0, -1, True, 1.5, "16", [16], None)),
    *(("lora_alpha", value) for value in (0, -8, 1e30, "x", True, None)),
    *(("lora_dropout", value) for value in (-0.1, 1.0, "0")),
    *(
        ("target_modules", value)
        for value in ("(a+)+b", "all-linear", [], [""], [1], [["q_proj"]], {"q_proj": 1}, None)
    ),
    ("use_rslora", "yes"),
    ("fan_in_fan_out", 1),
]


@pytest.mark.parametrize(("field", "value"), [*NOT_PLAIN.items(), *OUT_OF_RANGE])
def test_more_than_plain_lora_is_refused_by_its_field(adapter: Path, field: str, value: Any) -> None:
    configure(adapter, **{field: value})
    with pytest.raises(UserError, match=rf"{adapter}: {CONFIG}: '?{field}'? is ") as caught:
        read_adapter(adapter)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("field", ["r", "lora_alpha", "target_modules", "peft_type"])
def test_a_field_without_a_safe_default_must_be_there(adapter: Path, field: str) -> None:
    fields = json.loads((adapter / CONFIG).read_text())
    del fields[field]
    (adapter / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(UserError, match=f"'{field}' is missing"):
        read_adapter(adapter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
        (b"", "Expecting value"),
        (b'{"r": 4', "Expecting"),
        (b"\xff\xfe{", "utf-8"),
        (b"[" * 10**5, "nested too deep"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
        (b'{"r": ' + b"9" * 5000 + b"}", "integer of 5000 digits"),
        (b'{"lora_alpha": NaN}', "NaN is not a JSON number"),
        (b'{"lora_alpha": 1e999}', "not finite"),
        (b'{"r": 4, "r": 8}', "'r' stands there twice"),
        (b'{"a": "\\ud800"}', "half a character"),
        (b" " * 5 * 2**20, r"5,242,880 bytes, more than the 4,194,304"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_configuration_that_is_no_object_is_refused(adapter: Path, text: bytes, message: str) -> None:
    (adapter / CONFIG).write_bytes(text)
    with pytest.raises(UserError, match=rf"{CONFIG} cannot be used: .*{message}.*; give a folder"):
        read_adapter(adapter)


@pytest.mark.timeout(20)
def test_pipes_and_devices_are_not_opened(adapter: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        kept = (adapter / name).read_bytes()
        (adapter / name).unlink()
        os.mkfifo(adapter / name)
        with pytest.raises(UserError, match=f"no {name} there"):
            read_adapter(adapter)
        (adapter / name).unlink()
        (adapter / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match=f"no {name} there"):
            read_adapter(adapter)
        (adapter / name).unlink()
        (adapter / name).write_bytes(kept)


# Weights that are refused


def first(header: Header) -> Header:
    return header[next(name for name in header if name != "__metadata__")]


def of_dtype(header: Header, dtype: str, shape: Callable[[list[int]], list[int]]) -> Header:
    return {
        name: entry if name == "__metadata__" else entry | {"dtype": dtype, "shape": shape(entry["shape"])}
        for name, entry in header.items()
    }


def spoil(folder: Path, how: str) -> None:
    header, body = parts(folder)
    path = folder / WEIGHTS
    raw = path.read_bytes()
    names = [name for name in header if name != "__metadata__"]
    if how == "pickle":
        torch.save({"a": torch.zeros(2)}, path)
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut in the header":
        path.write_bytes(raw[:100])
    elif how == "cut in the body":
        path.write_bytes(raw[:-1])
    elif how == "longer":
        path.write_bytes(raw + b"\0" * 8)
    elif how == "header of 2**60 bytes":
        path.write_bytes(struct.pack("<Q", 2**60) + raw[8:])
    elif how == "header of 17 MiB":
        write_parts(folder, json.dumps(header).encode() + b" " * 17 * 2**20, body)
    elif how == "deep header":
        write_parts(folder, b'{"a":' + b"[" * 10**6, body)
    elif how == "overflow":
        first(header)["shape"] = [2**40, 2**40]
    elif how == "beyond":
        first(header)["data_offsets"] = [0, 2**50]
    elif how == "overlap":
        header[names[2]] = dict(first(header))
    elif how == "integers":
        header = of_dtype(header, "I32", lambda shape: shape)
    elif how == "float64":
        header = of_dtype(header, "F64", lambda shape: [shape[0], shape[1] // 2])
    elif how == "one dimension":
        first(header)["shape"] = [first(header)["shape"][0] * first(header)["shape"][1]]
    elif how == "no elements":
        header[names[-1]] = {"dtype": "F32", "shape": [0, 64], "data_offsets": [0, 0]}
        body = body[: -4 * 64]
    elif how == "no tensors":
        header, body = {"__metadata__": {"format": "pt"}}, b""
    elif how == "head alone":
        header, body = {names[-1]: header[names[-1]] | {"data_offsets": [0, 256]}}, body[-256:]
    elif how == "unknown name":
        header["base_model.model.lm_head.weight"] = header.pop(names[-1])
    elif how == "A without B":
        header["base_model.model.x.lora_A.weight"] = {"dtype": "F32", "shape": [4, 1], "data_offsets": [len(body)] * 2}
        header["base_model.model.x.lora_A.weight"]["data_offsets"][1] += 16
        body += b"\0" * 16
    elif how == "not targeted":
        configure(folder, target_modules=["q_proj"])
    elif how == "idle target":
        configure(folder, target_modules=[*json.loads((folder / CONFIG).read_text())["target_modules"], "lm_head"])
    elif how == "other rank":
        configure(folder, r=10**9)
    elif how == "long name":
        header["base_model.model." + "a." * 10**6 + "q_proj.lora_A.weight"] = header.pop(names[0])
    elif how == "control characters":
        header[f"{names[0]}\x1b[2J"] = first(header) | {"data_offsets": [1, 2]}
    if (folder / WEIGHTS).read_bytes() == raw:
        write_parts(folder, header, body)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("pickle", "not safetensors"),
        ("empty", "header of 0 bytes in a file of 0"),
        ("cut in the header", "cut off"),
        ("cut in the body", "its tensors take [0-9,]+ bytes, and it has"),
        ("longer", "its tensors take [0-9,]+ bytes, and it has"),
        ("header of 2**60 bytes", "header of 1,152,921,504,606,846,976 bytes"),
        ("header of 17 MiB", "its header has .* the most is 16,777,216"),
        ("deep header", "nested too deep"),
        ("overflow", "overflow"),
        ("beyond", "would take bytes 0 to|would take bytes .* after 1,125,899,906,842,624"),
        ("overlap", "would take bytes"),
        ("integers", "tensors are I32; adapters are F32, F16, BF16"),
        ("float64", "tensors are F64"),
        ("one dimension", "expected two sizes above 0"),
        ("no elements", "expected two sizes above 0"),
        ("no tensors", "holds no LoRA tensors"),
        ("head alone", "holds no LoRA tensors"),
        ("unknown name", "'base_model.model.lm_head.weight' is unknown"),
        ("A without B", "'x' has an A or a B, not both"),
        ("not targeted", "_proj' is not among the target_modules"),
        ("idle target", "targets 1 modules without tensors here, the first 'lm_head'"),
        ("other rank", r"has the shape \(4, (64|128)\), but r is 1000000000"),
        ("long name", "is unknown"),
        ("control characters", r"\\x1b"),
    ],
)
def test_weights_that_are_no_plain_lora_are_refused(adapter: Path, how: str, message: str) -> None:
    spoil(adapter, how)
    with pytest.raises(UserError, match=rf"{adapter}: {WEIGHTS} cannot be .*{message}") as caught:
        read_adapter(adapter)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_with_its_tensor(adapter: Path, dtype: str, value: float) -> None:
    header, body = parts(adapter)
    width = FLOATS[dtype].itemsize
    header = of_dtype(header, dtype, lambda shape: shape)
    at, changed = 0, bytearray(len(body) * width // 4)
    for name, entry in header.items():
        if name != "__metadata__":
            size = width * entry["shape"][0] * entry["shape"][1]
            entry["data_offsets"], at = [at, at + size], at + size
    spoiled = next(name for name in header if "v_proj.lora_B" in name)
    end = header[spoiled]["data_offsets"][1]
    changed[end - width : end] = torch.tensor([value], dtype=FLOATS[dtype]).view(torch.uint8).numpy().tobytes()
    write_parts(adapter, header, bytes(changed))
    with pytest.raises(UserError, match=f"'{spoiled}' holds NaN or infinity"):
        read_adapter(adapter)


@pytest.mark.timeout(20)
def test_a_file_that_is_larger_than_any_adapter_is_not_read(adapter: Path) -> None:
    os.truncate(adapter / WEIGHTS, 2**40)
    with pytest.raises(UserError, match=r"its file has 1,099,511,627,776 bytes; the most is"):
        read_adapter(adapter)


# What fits itself, and not the base


@pytest.fixture
def fitting(model: SharedModel, tmp_path: Path) -> Fitting:
    """What was read of the role sft, its tensors as views that take no memory."""
    model.save_role("sft", tmp_path / "fitting")
    config, state = read_adapter(tmp_path / "fitting")
    return config, {name: tensor[:1, :1].expand(tensor.shape) for name, tensor in state.items()}


def wide(state: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    sizes = {name: (rank, t.shape[1]) if "lora_A" in name else (t.shape[0], rank) for name, t in state.items()}
    return {name: state[name][:1, :1].expand(size) for name, size in sizes.items()}


def test_what_fits_the_base_fits(model: SharedModel, fitting: Fitting) -> None:
    config, state = fitting
    require_fit(model.causal, config, state)
    config.r = 10**6
    require_fit(model.causal, config, wide(state, 10**6))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "phi"])
def test_every_kind_of_linear_layer_is_known(tiny_model: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    model = fresh(tiny_model, name)
    model.add_role("sft", LoraSettings(rank=2))
    model.save_role("sft", tmp_path)
    config, state = read_adapter(tmp_path)
    for base in (model, fresh(tiny_model, name)):  # with adapters on it, and bare
        require_fit(base.causal, config, state)


def test_what_does_not_fit_the_base_is_told(model: SharedModel, fitting: Fitting) -> None:
    config, state = fitting
    layer = "model.layers.1.mlp.up_proj"
    a, b = (f"base_model.model.{layer}.lora_{part}.weight" for part in "AB")
    with pytest.raises(ValueError, match=rf"lora_A of {layer} is \(4, 65\), expected \(4, 64\)"):
        require_fit(model.causal, config, state | {a: torch.zeros(1, 1).expand(4, 65)})
    with pytest.raises(ValueError, match=rf"lora_B of {layer} is \(127, 4\), expected \(128, 4\)"):
        require_fit(model.causal, config, state | {b: torch.zeros(1, 1).expand(127, 4)})
    without = {name: tensor for name, tensor in state.items() if layer not in name}
    with pytest.raises(ValueError, match=rf"1 layers are missing \['{layer}'\], of 0 layers unknown"):
        require_fit(model.causal, config, without)
    more = {name.replace("layers.1", "layers.2"): tensor for name, tensor in state.items() if "layers.1" in name}
    with pytest.raises(ValueError, match=r"0 layers are missing \[\], of 7 layers unknown"):
        require_fit(model.causal, config, state | more)


@pytest.mark.parametrize("target", ["self_attn", "embed_tokens", "norm"])
def test_only_linear_layers_are_adapted(model: SharedModel, fitting: Fitting, target: str) -> None:
    config, _ = fitting
    config.target_modules = {target}
    paths = [path for path, _ in model.causal.named_modules() if path.split(".")[-1] == target]
    state = {f"base_model.model.{path}.lora_{part}.weight": torch.zeros(4, 4) for path in paths for part in "AB"}
    assert state
    with pytest.raises(ValueError, match=f"{target} is not a linear layer"):
        require_fit(model.causal, config, state)


@pytest.mark.parametrize("target", ["base_layer", "sft", "score"])
def test_an_adapter_is_not_put_on_an_adapter(model: SharedModel, fitting: Fitting, target: str) -> None:
    config, _ = fitting
    config.target_modules = {target}
    state = {f"base_model.model.{target}.lora_{part}.weight": torch.zeros(4, 4) for part in "AB"}
    with pytest.raises(ValueError, match=r"0 layers are missing \[\], of 1 layers unknown"):
        require_fit(model.causal, config, state)


def test_nothing_is_made_for_an_adapter_that_does_not_fit(adapter: Path, tiny_model: Callable[[str], Path]) -> None:
    """PEFT would make parameters of the rank that the file has, before they could be compared with the file's."""
    header, body = parts(adapter)
    wrong = {name.replace("layers.1", "layers.7"): entry for name, entry in header.items()}
    write_parts(adapter, wrong, body)
    model = fresh(tiny_model)
    with pytest.raises(UserError, match="does not fit the base"):
        model.load_role("loaded", adapter)
    assert model.peft is None


# Everything else


def mutate(rng: random.Random, raw: bytes) -> bytes:
    """One change of the kinds that transfers, disks and people make."""
    at, more = rng.randrange(len(raw)), rng.randrange(1, 40)
    kind = rng.choice(("bit", "byte", "cut", "drop", "double", "insert", "digits", "word"))
    if kind == "bit":
        return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :]
    if kind == "byte":
        return raw[:at] + rng.randbytes(1) + raw[at + 1 :]
    if kind == "cut":
        return raw[:at]
    if kind == "drop":
        return raw[:at] + raw[at + more :]
    if kind == "double":
        return raw[: at + more] + raw[at:]
    if kind == "insert":
        return raw[:at] + rng.randbytes(more) + raw[at:]
    places = [i for i in range(len(raw[:8000])) if raw[i : i + 1].isdigit()] or [at]
    at = rng.choice(places)
    if kind == "digits":
        return raw[:at] + rng.choice((b"0", b"-1", b"1e9", b"99999999999999999999", b"4", b"NaN")) + raw[at + 1 :]
    words = (b"null", b"false", b"true", b"[]", b"{}", b'"a"', b"1.5", b"[[0,2]]")
    word = rng.choice(words)
    found = [i for other in words for i in [raw[:8000].find(other)] if i >= 0] or [at]
    at = rng.choice(found)
    old = next((other for other in words if raw.startswith(other, at)), b"")
    return raw[:at] + word + raw[at + len(old) :]


def body_alone(good: bytes, bad: bytes) -> bool:
    """Whether two weight files differ in their numbers alone."""
    (size,) = struct.unpack("<Q", good[:8])
    return len(good) == len(bad) and good[: 8 + size] == bad[: 8 + size]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_2000_damaged_folders_load_as_written_or_are_refused(adapter: Path) -> None:
    """Never another exception, never slow; damage to the numbers alone is told by NaN and infinity, or loads."""
    rng = random.Random(0)
    good = {name: (adapter / name).read_bytes() for name in (CONFIG, WEIGHTS)}
    loaded = refused = 0
    slowest, began = 0.0, time.monotonic()
    for _ in range(2000):
        shutil.rmtree(adapter)
        adapter.mkdir()
        spoiled = rng.choice((CONFIG, WEIGHTS))
        raw = mutate(rng, good[spoiled])
        for name, content in good.items():
            (adapter / name).write_bytes(raw if name == spoiled else content)
        started = time.monotonic()
        try:
            config, state = read_adapter(adapter)
        except UserError as error:
            refused += 1
            assert str(adapter) in str(error) and len(str(error)) < 1000
            if spoiled == WEIGHTS and body_alone(good[WEIGHTS], raw):
                assert not all(tensor.isfinite().all() for tensor in tensors(adapter).values())
        else:
            loaded += 1
            written = tensors(adapter)
            assert same(state, written) and all(tensor.isfinite().all() for tensor in written.values())
            fields = json.loads((adapter / CONFIG).read_text())
            assert (config.r, config.lora_alpha) == (fields["r"], fields["lora_alpha"])
            assert config.target_modules == set(fields["target_modules"])
            assert config.lora_dropout == fields.get("lora_dropout", 0.0)
            assert config.use_rslora == fields.get("use_rslora", False)
        slowest = max(slowest, time.monotonic() - started)
    assert loaded > 200 and refused > 1000
    assert slowest < 2 and time.monotonic() - began < 30
