"""Settings of the Compare tab under a name, and those that were asked with last, kept by the browser."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import gradio as gr

from lora_rlhf_demo.state import HANDLER_OPTIONS

LAST = ""  # the name of the settings that were asked with last
MOST, NAME_CHARACTERS = 30, 60


@dataclass(frozen=True)
class Preset:
    """What is kept of the settings."""

    system: str
    temperature: float
    top_p: float
    length: int


class Presets:
    """The box that chooses a preset, and the button that keeps one.

    kept: what the browser keeps; it must not stand in a section that may be closed, which would not read it. controls:
    of the fields of `Preset`, in order.
    """

    def __init__(self, kept: gr.BrowserState, controls: list[Any]) -> None:
        self.kept, self.controls = kept, controls
        label = "Preset: choose one, or write a new name"
        self.name = gr.Dropdown([], label=label, allow_custom_value=True, elem_id="presets")
        self.keep = gr.Button("Keep these settings under that name", size="sm", elem_id="keep-preset")
        self.name.input(self._choose, [self.kept, self.name], controls, **HANDLER_OPTIONS)
        self.keep.click(self._keep, [self.kept, self.name, *controls], [self.kept, self.name], **HANDLER_OPTIONS)

    def _choose(self, kept: Any, name: Any) -> tuple[Any, ...]:
        """Sets the controls; a name that is not known yet changes nothing."""
        preset = read_presets(kept).get(name) if isinstance(name, str) else None
        return (gr.skip(),) * len(self.controls) if preset is None else tuple(asdict(preset).values())

    def _keep(self, kept: Any, name: Any, *values: Any) -> tuple[Any, Any]:
        name = str(name or "").strip()[:NAME_CHARACTERS]
        if not name:
            return gr.skip(), gr.skip()
        presets = with_preset(kept, name, Preset(*values))
        return presets, gr.update(choices=preset_names(presets), value=name)


def read_presets(kept: Any) -> dict[str, Preset]:
    """The presets of a browser, without those that are no settings: it may keep anything."""
    rows = kept.items() if isinstance(kept, Mapping) else ()
    return {name: Preset(**row) for name, row in rows if _is_preset(row)}


def _is_preset(row: Any) -> bool:
    if not isinstance(row, Mapping) or set(row) != {field.name for field in fields(Preset)}:
        return False
    numbers = (row["temperature"], row["top_p"], row["length"])
    in_range = all(type(number) in (int, float) and 0 <= number <= 2**20 for number in numbers)
    return isinstance(row["system"], str) and in_range


def with_preset(kept: Any, name: str, preset: Preset) -> dict[str, dict[str, Any]]:
    """All presets with this one, to keep; the oldest of more than MOST is given up."""
    presets = {old: asdict(row) for old, row in read_presets(kept).items() if old != name}
    newest = list(presets.items())[-MOST:]
    return {**dict(newest), name: asdict(preset)}


def preset_names(kept: Any) -> list[str]:
    """The names to choose from."""
    return sorted(name for name in read_presets(kept) if name != LAST)
