"""The first import of Gradio: it reports nothing, and takes half the time."""

import inspect
import os
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_file_of = inspect.getfile


def _file_of_no_component(object: Any) -> str:
    """Raises OSError for Gradio's components: it would parse the source of each to write a .pyi file."""
    if type(object).__name__ == "ComponentMeta":
        raise OSError("no .pyi file is wanted")
    return _file_of(object)


inspect.getfile = _file_of_no_component
try:
    import gradio as gr
finally:
    inspect.getfile = _file_of

__all__ = ["gr"]
