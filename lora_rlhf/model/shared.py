"""One base, many roles. Only this module knows that roles are adapters, and only it switches them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from peft import LoraConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_rlhf.model import adapters
from lora_rlhf.model.adapted_linear import PLAIN_MODE, AdaptedLinears, LinearMode
from lora_rlhf.model.adapters import LoraSettings, disable_dropout
from lora_rlhf.model.architecture import text_backbone
from lora_rlhf.model.base import Base, hash_live_tensors
from lora_rlhf.model.gates import replace_gates
from lora_rlhf.model.heads import attach_score_head, find_score_head
from lora_rlhf.model.mixed import Mixture
from lora_rlhf.model.norms import replace_norms
from lora_rlhf.model.rotations import replace_rotations
from lora_rlhf.model.targets import find_targets
from lora_rlhf.system.errors import UserError

BASE = "base"


class _State(NamedTuple):
    """The state of a block, which its end restores. role: None outside any block and in a mixture."""

    role: str | None
    training: bool
    mode: LinearMode = PLAIN_MODE


_IDLE = _State(None, False)


class SharedModel:
    """The base with its adapters and heads. Everything is frozen, except a role in a block with training=True.

    A forward pass runs inside a `role` or `mixture` block. Blocks may nest. A backward pass must find the model in the
    state (role and training) in which its forward ran: PEFT would otherwise give zero or wrong gradients without an
    error; here it is a RuntimeError. Not thread-safe: one block is active at a time.
    """

    def __init__(self, base: Base) -> None:
        self.base = base
        self._backbone = text_backbone(self.causal)
        self.peft: PeftModel | None = None
        self._aliases: dict[str, str] = {}
        self._state = _IDLE
        self._linears = AdaptedLinears()
        self._has_rounded_adapters = self.device.type == "cuda" and self.causal.dtype.itemsize == 2
        self._enabled: str | None = None  # the adapter that PEFT applies now, also after the end of its block
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        self._score_offsets: dict[str, float] = {}  # of the roles whose scores were calibrated
        self.loss_scale = 1.0  # by which `backward` multiplies losses, and by which gradients are too large after it
        self.capture_fault: str | None = None  # why its decoding step is not captured as a CUDA graph, once it is known
        self.has_fused_kernels = False  # whether another library's modules were put into the base
        self._targets = find_targets(self.causal)
        attach_score_head(self.causal)
        for replace in (replace_norms, replace_gates, replace_rotations):
            replace(self.causal)
        self.backbone.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        self.backbone.register_forward_hook(self._after_forward)

    @property
    def causal(self) -> PreTrainedModel:
        """The causal language model, with the adapters injected."""
        return self.base.model

    @property
    def backbone(self) -> nn.Module:
        """The text model without its LM head: ids to hidden states (B, T, H)."""
        return self._backbone

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.base.tokenizer

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def config(self) -> PreTrainedConfig:
        """The configuration of the text model."""
        return self.causal.config.get_text_config()

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role that a block can have now."""
        return (BASE, *self._parameters, *self._aliases)

    @property
    def head(self) -> nn.Linear:
        """The score head of the active role."""
        adapter = self._find_adapter(self._active_role())
        head = None if adapter is None else find_score_head(self.causal, adapter)
        if head is None:
            raise ValueError(f"role {self._state.role!r} has no score head")
        return head

    @property
    def mode(self) -> LinearMode:
        """The way in which the adapted layers compute in the innermost block."""
        return self._state.mode

    @property
    def rounded_copies(self) -> object:
        """The 16-bit copies of the active adapter that the last pass wrote; a captured pass needs them alive."""
        return self._linears.rounded_copies

    def score(self, hidden: Tensor) -> Tensor:
        """The active role's score of hidden states (N, H), minus the role's offset: (N,), float32."""
        return self.head(hidden.float()).squeeze(-1) - self.score_offset(self._active_role())

    def score_offset(self, role: str) -> float:
        """The offset of a role's scores: the mean score of the demonstrations after they were scored; else 0."""
        return self._score_offsets.get(role, 0.0)

    def set_score_offset(self, role: str, offset: float) -> None:
        """From now on the role's scores and values are those of its head minus `offset`.

        A head has no bias, as PEFT and transformers store none; the reward stage's manifest stores the offset.
        """
        self._require_parameters(role)
        self._score_offsets[role] = offset

    def base_digest(self) -> str:
        """Hash of every live tensor of the base: nothing that is done here changes it."""
        return hash_live_tensors(self.causal)

    # Adding, copying, loading and saving roles

    def share_without_adapter(self, settings: LoraSettings) -> float:
        """The share of the text model's matrices, embeddings left out, that get no adapter.

        UserError for a target that the base does not have.
        """
        return self._targets.share_without(settings.targets)

    def add_role(self, role: str, settings: LoraSettings, head: bool = False) -> None:
        """Adds an adapter that changes nothing yet (B = 0), with a new score head if `head`. Draws from torch's RNG."""
        self._require_new_role(role)
        self._add_adapter(role, settings.to_peft(self._targets), head)

    def copy_role(self, source: str, target: str, head: Literal["copy", "new"] | None = None) -> None:
        """Adds `target` as a bit-exact copy of `source`, without dropout; its head is copied, new, or left out.

        The score offset is copied with the head.
        """
        self._require_new_role(target)
        parameters = self._require_parameters(source)
        if head == "copy" and find_score_head(self.causal, source) is None:
            raise ValueError(f"role {source!r} has no score head to copy")
        self._add_adapter(target, disable_dropout(self._copy_config(source)), head is not None)
        for name, parameter in self._parameters[target].items():
            if head == "copy" or not adapters.is_head_parameter(name):
                parameter.data.copy_(parameters[name].data)
        if head == "copy":
            self.set_score_offset(target, self.score_offset(source))

    def load_role(self, role: str, folder: str | Path) -> None:
        """Adds an adapter, and its head if it has one, from a standard PEFT folder. Errors as `load_roles`."""
        self.load_roles({role: folder})

    def load_roles(self, folders: Mapping[str, str | Path]) -> None:
        """Adds an adapter, and its head if it has one, from a standard PEFT folder for each role.

        UserError, before any is added, if a folder is not a LoRA adapter in safetensors, or does not fit the base
        tensor by tensor.
        """
        for role in folders:
            self._require_new_role(role)
        read = {role: adapters.read_adapter(Path(folder)) for role, folder in folders.items()}
        role = ""
        try:
            for role in read:
                adapters.require_fit(self.causal, *read[role])
            for role, (config, state) in read.items():
                self._add_adapter(role, config, any(adapters.is_head_parameter(name) for name in state))
                self.load_adapter_state(role, state)
        except ValueError as error:  # PEFT's, for layers that the base lacks, or ours
            self.remove_role(role)
            raise UserError(
                f"adapter {folders[role]} does not fit the base {self.base.spec.name!r}: {error}"
            ) from error

    def remove_role(self, role: str) -> None:
        """Removes an adapter and its head, if the role exists. RuntimeError inside a block."""
        if self._state != _IDLE:
            raise RuntimeError(f"roles cannot be removed inside the block of {self._state}")
        if self.peft is not None and role in self.peft.peft_config:
            self.peft.delete_adapter(role)
            self._linears.install(self.peft)
            self._set_idle()
        self._parameters.pop(role, None)
        self._score_offsets.pop(role, None)

    def save_role(self, role: str, folder: str | Path) -> None:
        """Writes a standard PEFT folder (safetensors), completely or not at all. It replaces an older one."""
        adapters.write_adapter(Path(folder), self._copy_config(role), self.adapter_state(role))

    def alias(self, role: str, of: str) -> None:
        """Makes `role` a second name of the role `of`, without a copy. It cannot be trained under this name."""
        if role == BASE or role in self._parameters:
            raise ValueError(f"role {role!r} exists already")
        if of != BASE:
            self._require_parameters(of)
        self._aliases[role] = of

    def named_parameters_of(self, role: str) -> list[tuple[str, nn.Parameter]]:
        """The role's parameters, all float32, under the names that PEFT gives them in a file."""
        return list(self._require_parameters(role).items())

    def adapter_state(self, role: str) -> dict[str, Tensor]:
        """A copy of the role's parameters on the CPU, under the names that PEFT gives them in a file."""
        return {name: p.detach().to("cpu", copy=True).contiguous() for name, p in self.named_parameters_of(role)}

    def load_adapter_state(self, role: str, state: dict[str, Tensor]) -> None:
        """Restores a state bit for bit. ValueError for a missing or unknown tensor and for another shape."""
        adapters.load_state(self._require_parameters(role), state)

    # Switching

    @contextmanager
    def role(self, role: str, training: bool = False) -> Iterator["SharedModel"]:
        """Runs as `role` inside the block. Its end restores the state before it, also after an error.

        training=True: train mode, and gradients only for this role's parameters. Else eval mode, and no gradients.
        """
        self._find_adapter(role)
        if training:
            self._require_parameters(role)
        with self._use_state(_State(role, training)):
            yield self

    @contextmanager
    def in_mode(self, mode: LinearMode) -> Iterator[None]:
        """Inside, the adapted layers of the active role compute in this mode. An inner block has its own mode."""
        with self._use_state(self._state._replace(mode=mode)):
            yield

    def mixture(self, roles: Sequence[str]) -> Mixture:
        """Several roles at once: `with model.mixture(roles) as mixture`, and each row of a batch has its own role.

        Such a block is like one of `role`, without gradients. A mixture has a copy of the roles as they are now, and
        may be entered again and again. ValueError for a role that does not exist.
        """
        names = [self._find_adapter(role) for role in roles]
        dtype = self.causal.dtype if self._has_rounded_adapters else torch.float32
        return Mixture(roles, names, self.peft, lambda mixture: self._use_state(_State(None, False, mixture)), dtype)

    @property
    def active_role(self) -> str | None:
        """The role of the innermost block; None outside any block, and in a mixture."""
        return self._state.role

    def enable_gradient_checkpointing(self) -> None:
        """From now on training forwards keep only each layer's input; the backward pass computes layers again."""
        self.causal.activation_checkpointing_enable({"use_reentrant": False})
        # Only reentrant checkpointing needs embeddings with gradients, and frozen roles would build graphs on them.
        self.causal.disable_input_require_grads()

    def backward(self, output: Tensor, gradient: Tensor | None = None) -> None:
        """`output.backward(gradient)`, times `loss_scale`."""
        if self.loss_scale == 1:
            output.backward(gradient)
        else:
            output.backward(output.new_tensor(self.loss_scale) if gradient is None else gradient * self.loss_scale)

    def check_gradients(self, role: str) -> None:
        """RuntimeError, with a parameter's name, if the role got no gradient. Call it between backward and step."""
        names_without = [name for name, parameter in self._require_parameters(role).items() if parameter.grad is None]
        if names_without:
            raise RuntimeError(
                f"{len(names_without)} parameters of role {role!r} got no gradient, first {names_without[0]}"
            )

    @contextmanager
    def _use_state(self, state: _State) -> Iterator[None]:
        """Enters the state for the block, then restores the state before it."""
        state_before = self._state
        try:
            self._switch(state)
            yield
        finally:
            self._switch(state_before)

    def _switch(self, state: _State) -> None:
        """Changes mode, trainable parameters and PEFT's adapter from the old state to the new one."""
        old_state, self._state = self._state, state
        if old_state == state and self.causal.training == state.training:
            return
        old_state.mode.on_mode_end()
        self._linears.mode = state.mode
        if old_state.training and old_state.role is not None:
            self._set_trainable(old_state.role, False)
        if state != _IDLE:
            self._enable(self._find_adapter(state.role or BASE))
        if state.training and state.role is not None:
            self._set_trainable(state.role, True)
        if self.causal.training != state.training:
            (self.peft or self.causal).train(state.training)

    def _enable(self, adapter: str | None) -> None:
        """Makes PEFT apply this adapter, or none. PEFT walks all layers, so nothing is done if nothing changes."""
        if self.peft is None or adapter == self._enabled:
            return
        if adapter is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            if self._enabled is None:
                self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(adapter, inference_mode=True)
        self._enabled = adapter

    def _set_trainable(self, role: str, trainable: bool) -> None:
        """Turns gradients of a role's parameters on or off."""
        for parameter in self._parameters[role].values():
            parameter.requires_grad_(trainable)

    def _before_forward(self, _module: nn.Module, inputs: tuple[Any, ...], keyword_inputs: dict[str, Any]) -> None:
        """Hook of the backbone: RuntimeError outside any block."""
        if self._state == _IDLE:
            raise RuntimeError("a forward pass outside any role: use `with model.role(...)`")
        self._state.mode.before_pass(inputs, keyword_inputs)
        if self._has_rounded_adapters and self._enabled is not None and self._state.mode is PLAIN_MODE:
            self._linears.round_adapter(self._enabled, self.causal.dtype)

    def _after_forward(self, _module: nn.Module, _inputs: object, output: object) -> None:
        """Hook of the backbone: its backward pass must run in the state of this forward pass."""
        self._state.mode.after_pass()
        hidden: Tensor = output[0]  # type: ignore[index]
        if not hidden.requires_grad:
            return
        forward_state = self._state

        def check(_grad: Tensor) -> None:
            if self._state != forward_state:
                raise RuntimeError(
                    f"backward as {self._state} of a forward that ran as {forward_state}: its gradients would be "
                    "silently wrong. Keep forward and backward inside one role block"
                )

        hidden.register_hook(check)

    # Bookkeeping

    def _active_role(self) -> str:
        """The role of the innermost block. RuntimeError if there is none."""
        if self._state.role is None:
            raise RuntimeError("no role is active: use `with model.role(...)`")
        return self._state.role

    def _find_adapter(self, role: str) -> str | None:
        """The adapter of a role or alias; None for the bare base. ValueError for an unknown role."""
        role = self._aliases.get(role, role)
        if role != BASE and role not in self._parameters:
            raise ValueError(f"no role {role!r}; there are: {', '.join(self.roles)}")
        return None if role == BASE else role

    def _require_parameters(self, role: str) -> dict[str, nn.Parameter]:
        """The role's parameters. ValueError for a role that has none of its own."""
        if role not in self._parameters:
            reason = "is frozen" if role in self.roles else "does not exist"
            raise ValueError(
                f"role {role!r} {reason}; roles with parameters of their own: {', '.join(self._parameters)}"
            )
        return self._parameters[role]

    def _require_new_role(self, role: str) -> None:
        """RuntimeError inside a block; ValueError for a name that is reserved, used or not a name."""
        if self._state != _IDLE:
            raise RuntimeError(f"roles cannot be added inside the block of {self._state}")
        if role in (BASE, "reference") or role in self.roles or not role or "." in role:
            raise ValueError(f"role {role!r} is reserved, taken or not a name; there are: {', '.join(self.roles)}")

    def _copy_config(self, role: str) -> LoraConfig:
        """A copy of the configuration of a role's adapter."""
        self._require_parameters(role)
        assert self.peft is not None
        return deepcopy(self.peft.peft_config[role])

    def _add_adapter(self, role: str, config: LoraConfig, head: bool) -> None:
        """Adds PEFT's adapter for the role and returns to the idle state."""
        self.peft = adapters.add_adapter(self.causal, self.peft, role, config, head)
        self._linears.install(self.peft)
        self._parameters[role] = adapters.role_parameters(self.peft, role)
        self._set_idle()

    def _set_idle(self) -> None:
        """Restores the idle state after PEFT has added or removed an adapter, which changes flags and modes."""
        assert self.peft is not None
        self.peft.eval().requires_grad_(False)
        self.peft.base_model.disable_adapter_layers()
        self._enabled = None
