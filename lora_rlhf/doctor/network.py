"""The hub: whether models and datasets can be downloaded."""

from collections.abc import Callable

from lora_rlhf.doctor.findings import Finding
from lora_rlhf.system.network import ask_hub, needs_library


def request_hub(address: str) -> Callable[[], str | None]:
    """Sends a request to the hub in the background.

    The returned function waits for the answer; it returns None, or why no answer came.
    """
    if needs_library():
        return lambda: "a proxy is set through which only the hub's own library can ask"
    return ask_hub(address)


def hub_finding(address: str, setting: str | None, fault: str | None) -> Finding:
    """Whether the hub can be reached. The tiny world, local models and local data do not need it."""
    values = {"endpoint": address, "offline": setting, "fault": fault}
    if setting is not None:
        text = f"not asked, since {setting} is set: what is in the cache can be used"
        return Finding("hub", "note", text, f"unset {setting} to download more", values)
    if fault is not None:
        advice = "what is in the cache or in local folders can be used; for more, look at the network and its proxy"
        return Finding("hub", "note", f"no answer from {address} ({fault})", advice, values)
    return Finding("hub", "ok", f"{address} answers", values=values)
