"""Several roles in one forward pass: each row is as its role alone, and nothing is left behind."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lora_rlhf.model import mixed
from lora_rlhf.model.adapters import LoraSettings
from lora_rlhf.model.forward import mixed_logprobs, response_logprobs
from lora_rlhf.model.shared import SharedModel
from lora_rlhf.system.errors import UserError
from tests.support.batches import random_batch
from tests.support.models import compute_as_peft, randomize

Make = Callable[..., SharedModel]
ROLES = ("base", "sft", "policy", "reference", "wide", "policy")
INDICES = (3, 0, 5, 1, 4, 2, 2)


def several(make: Make, *args: str) -> SharedModel:
    """Roles of unlike ranks and scales, one of them on some of the layers alone."""
    model = make(*args)
    last = model._targets.peft_names(("all-linear",))[-1]
    model.add_role("wide", LoraSettings(rank=8, alpha=4, use_rslora=True))
    model.add_role("narrow", LoraSettings(rank=3, alpha=9, targets=(last,)))
    for number, role in enumerate(("wide", "narrow")):
        randomize(model, role, seed=10 + number)
    return model


def ids_of(rows: int, tokens: int = 11) -> Tensor:
    return torch.randint(5, 300, (rows, tokens), generator=torch.Generator().manual_seed(1))


def logits(model: SharedModel, roles: tuple[str, ...], indices: tuple[int, ...], ids: Tensor) -> Tensor:
    with model.mixture(roles) as mixture:
        mixture.assign(torch.tensor(indices))
        result: Tensor = model.causal(input_ids=ids, use_cache=False).logits
    return result


def of_peft(model: SharedModel, roles: tuple[str, ...], indices: tuple[int, ...], ids: Tensor) -> Tensor:
    """PEFT's own way to mix adapters in a batch, with its own arithmetic."""
    names = {"base": "__base__", "reference": "sft"}
    compute_as_peft(model)
    assert model.peft is not None
    with model.role("policy"), torch.no_grad():  # PEFT needs adapters to be on
        chosen = [names.get(roles[index], roles[index]) for index in indices]
        result: Tensor = model.peft(input_ids=ids, adapter_names=chosen, use_cache=False).logits
    return result


def test_every_row_is_as_peft_computes_its_adapter(shared_model: Make, architecture: str) -> None:
    require_as_peft(shared_model, architecture, "nf4")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_every_row_is_as_peft_computes_it_without_quantization(shared_model: Make, name: str) -> None:
    require_as_peft(shared_model, name, "none")


def require_as_peft(shared_model: Make, name: str, quantization: str) -> None:
    model, ids = several(shared_model, name, quantization), ids_of(len(INDICES))
    roles = (*ROLES[:-1], "narrow")
    result = logits(model, roles, INDICES, ids)
    torch.testing.assert_close(result, of_peft(model, roles, INDICES, ids), rtol=0, atol=1e-4)


def test_in_8_bits_an_adapter_is_added_as_it_is_alone(shared_model: Make) -> None:
    """Of a whole model nothing can be asked: there a row's rounding hangs on the outliers of its neighbours."""
    model = several(shared_model, "llama", "int8")
    layer = model.backbone.layers[0].self_attn.q_proj
    row = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(2))
    inputs = row.expand(len(INDICES), -1, -1)
    outputs: list[Tensor] = []

    def run(*_: object) -> None:
        outputs.append(layer(inputs))

    hook = model.backbone.layers[0].register_forward_pre_hook(run)
    result = logits(model, ROLES, INDICES, ids_of(len(INDICES), tokens=3))
    hook.remove()
    assert result.isfinite().all()
    for number, index in enumerate(INDICES):
        with model.role(ROLES[index]), torch.no_grad():
            torch.testing.assert_close(outputs[0][number], layer(inputs)[number], rtol=0, atol=1e-5)
    assert len({round(float(row.sum()), 3) for row in outputs[0]}) == len({"base", "sft", "policy", "wide"})


def test_permuted_rows_give_permuted_results(shared_model: Make) -> None:
    model, ids = several(shared_model, "gemma2"), ids_of(len(INDICES))
    order = [4, 0, 6, 2, 5, 1, 3]
    result = logits(model, ROLES, INDICES, ids)
    moved = logits(model, ROLES, tuple(INDICES[row] for row in order), ids[order])
    torch.testing.assert_close(moved, result[order], rtol=0, atol=1e-5)
    changed = (logits(model, ROLES, (*INDICES[:2], 1, *INDICES[3:]), ids) - result).abs().amax(dim=(1, 2))
    assert changed[2] > 0.1 and changed[[0, 1, 3, 4, 5, 6]].max() < 1e-5, "a row's role is of that row alone"


def test_layers_may_see_all_tokens_as_rows(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """(B x T, H), as OPT's do."""
    model, ids = several(shared_model), ids_of(len(INDICES))
    forward = mixed.Mixture.forward

    def flat(self: mixed.Mixture, layer: nn.Module, inputs: Tensor) -> Tensor:
        return forward(self, layer, inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])

    monkeypatch.setattr(mixed.Mixture, "forward", flat)
    result = logits(model, ROLES, INDICES, ids)
    torch.testing.assert_close(result, of_peft(model, ROLES, INDICES, ids), rtol=0, atol=1e-4)


def test_layers_that_see_part_of_a_batch_are_refused(shared_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = several(shared_model), ids_of(2)
    hook = model.backbone.layers[0].mlp.register_forward_pre_hook(lambda _m, inputs: (inputs[0][:, :3],))
    with pytest.raises(RuntimeError, match=r"a layer saw \(2, 3, 64\), which are not the batch's 22 tokens"):
        logits(model, ROLES, (1, 2), ids)
    hook.remove()
    monkeypatch.setattr(mixed, "EXPERTS_PART", "mlp")
    with pytest.raises(UserError, match=r"layers\.0\.mlp\..* is an expert"):
        model.mixture(ROLES)


def test_rows_need_roles_before_each_forward(shared_model: Make) -> None:
    model, ids = shared_model(), ids_of(2)
    with model.mixture(("base", "sft")) as mixture:
        with pytest.raises(RuntimeError, match="call `assign` before each one"):
            model.causal(ids, use_cache=False)
        mixture.assign(torch.tensor([0, 1, 1]))
        with pytest.raises(RuntimeError, match="a forward pass of 2 rows, but 3 were assigned"):
            model.causal(ids, use_cache=False)
        mixture.assign(torch.tensor([0, 1]))
        model.causal(ids, use_cache=False)
        with pytest.raises(RuntimeError, match="call `assign` before each one"):
            model.causal(ids, use_cache=False)
        mixture.assign(torch.tensor([0, 1]))
        with torch.enable_grad(), pytest.raises(RuntimeError, match="inference alone"):
            model.causal(ids, use_cache=False)
        with pytest.raises(ValueError, match=r"\(B,\), got \(2, 1\)"):
            mixture.assign(torch.tensor([[0], [1]]))
        with pytest.raises(IndexError):
            mixture.assign(torch.tensor([0, 2]))
        with pytest.raises(RuntimeError, match="inside the block"):
            model.add_role("extra", LoraSettings())
    with model.mixture(("base", "sft")) as mixture:
        mixture.assign(torch.tensor([0, 1]))
    with mixture, pytest.raises(RuntimeError, match="call `assign` before each one"):
        model.causal(ids, use_cache=False)


def test_roles_that_do_not_exist_are_refused(shared_model: Make) -> None:
    model = shared_model()
    with pytest.raises(ValueError, match=r"no role 'nobody'; there are: base, sft"):
        model.mixture(("base", "nobody"))
    assert state(model) == state(shared_model())


def test_without_adapters_every_row_is_the_base(shared_model: Make) -> None:
    model, ids = shared_model(), ids_of(2)
    with model.role("base"), torch.no_grad():
        expected = model.causal(ids, use_cache=False).logits
    model.alias("reference", "base")
    assert torch.equal(logits(model, ("base", "reference"), (0, 1), ids), expected)


def state(model: SharedModel) -> object:
    """What could leak: role, train mode, what is trainable, what a forward pass computes."""
    train_modes = {module.training for module in model.causal.modules()}
    trainable = [name for name, parameter in model.causal.named_parameters() if parameter.requires_grad]
    result: float | str
    try:
        with torch.no_grad():
            result = float(model.causal(ids_of(2), use_cache=False).logits.double().sum())
    except RuntimeError as error:  # outside any role, or before a mixture's rows are assigned
        result = str(error)
    return model.active_role, train_modes, trainable, result, torch.is_grad_enabled()


@pytest.mark.parametrize(("name", "quantization"), [("llama", "nf4"), ("llama", "int8"), ("gpt2", "none")])
def test_all_is_as_before_after_an_exception(shared_model: Make, name: str, quantization: str) -> None:
    model, ids = several(shared_model, name, quantization), ids_of(2)
    idle, digest = state(model), model.base_digest()
    with pytest.raises(ZeroDivisionError), model.mixture(("base", "sft")) as mixture:
        assert state(model) != idle
        mixture.assign(torch.tensor([0, 1]))
        model.causal(ids, use_cache=False)
        raise ZeroDivisionError
    assert state(model) == idle
    with model.role("policy", training=True):
        inside = state(model)
        with pytest.raises(ZeroDivisionError), mixture, mixture, model.role("value"), mixture:
            raise ZeroDivisionError
        assert state(model) == inside
    assert state(model) == idle
    assert model.base_digest() == digest


def test_blocks_nest(shared_model: Make) -> None:
    model, ids = several(shared_model), ids_of(2)
    with model.role("policy"), torch.no_grad():
        policy = model.causal(ids, use_cache=False).logits
    expected = logits(model, ("wide", "base"), (1, 0), ids)
    with model.mixture(("base", "sft")) as outer:
        outer.assign(torch.tensor([0, 1]))
        with model.role("policy"):
            assert model.active_role == "policy"
            assert torch.equal(model.causal(ids, use_cache=False).logits, policy)
            assert torch.equal(logits(model, ("wide", "base"), (1, 0), ids), expected)
            assert torch.equal(model.causal(ids, use_cache=False).logits, policy)
        assert model.active_role is None
        outer.assign(torch.tensor([1, 0]))
        torch.testing.assert_close(
            model.causal(ids, use_cache=False).logits, logits(model, ("sft", "base"), (0, 1), ids), rtol=0, atol=1e-5
        )


def test_roles_beside_the_mixture_have_no_say(shared_model: Make) -> None:
    """Not the one that ran before, on layers that no role of the mixture changes; nor one that was added since."""
    model, ids = several(shared_model), ids_of(2)
    early = model.mixture(("narrow", "base"))
    expected = logits(model, ("narrow", "base"), (0, 1), ids)
    with model.role("policy"):
        assert torch.equal(logits(model, ("narrow", "base"), (0, 1), ids), expected)
    model.add_role("later", LoraSettings(rank=2))
    randomize(model, "later", seed=20)
    randomize(model, "narrow", seed=21)
    with model.role("later"), torch.no_grad():
        model.causal(ids, use_cache=False)
    with early:
        early.assign(torch.tensor([0, 1]))
        assert torch.equal(model.causal(ids, use_cache=False).logits, expected), "as it was when it was made"
    assert not torch.equal(logits(model, ("narrow", "base"), (0, 1), ids)[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_before_around_and_after_is_bit_for_bit_the_same(shared_model: Make, checkpointing: bool) -> None:
    batch = random_batch()

    def trained(mixing: bool) -> dict[str, Tensor]:
        model = several(shared_model)
        if checkpointing:
            model.enable_gradient_checkpointing()
        optimizer = torch.optim.AdamW([p for _, p in model.named_parameters_of("policy")], lr=1e-3)
        for _ in range(2):
            if mixing:
                logits(model, ROLES, INDICES, ids_of(len(INDICES)))
            with model.role("policy", training=True):
                loss = response_logprobs(model, batch)[0].sum()
                if mixing:
                    mixed_logprobs(
                        model, ["policy", "reference"] * (len(batch) // 2) + ["base"] * (len(batch) % 2), batch
                    )
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.adapter_state("policy")

    plain, mixing = trained(mixing=False), trained(mixing=True)
    assert all(torch.equal(plain[name], tensor) for name, tensor in mixing.items())


def test_a_backward_pass_inside_a_mixture_raises(shared_model: Make) -> None:
    model, batch = shared_model(), random_batch()
    with model.role("policy", training=True):
        loss = response_logprobs(model, batch)[0].sum()
        with model.mixture(("sft",)), pytest.raises(RuntimeError, match="silently wrong"):
            loss.backward()


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gpt2"])
def test_logprobs_of_rows_are_those_of_each_rows_role(shared_model: Make, name: str) -> None:
    model, batch, roles = several(shared_model, name), random_batch(), ("policy", "reference", "base", "policy")
    size = len(batch)
    rows = [row for row in range(size) for _ in roles]
    result = mixed_logprobs(model, roles * size, batch.index(rows), temperature=0.7)
    assert result.shape == (4 * size, batch.response_ids.shape[1]) and not result.requires_grad
    for index, role in enumerate(roles):
        with model.role(role), torch.no_grad():
            expected = response_logprobs(model, batch, 0.7)[0]
        torch.testing.assert_close(result[index :: len(roles)], expected, rtol=0, atol=2e-5)
