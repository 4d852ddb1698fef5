"""The hub: whether models and datasets can be downloaded."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

from lora_rlhf.data.hub import OFFLINE_VARIABLES, PROBE_SECONDS, PROXY_FAULTS, YES
from lora_rlhf.doctor.findings import Finding

ENDPOINT = "https://huggingface.co"


def ask_hub(endpoint: str) -> Callable[[], str | None]:
    """Asks in the background. The function that it gives waits, and says why no answer came; None if one did."""
    fault: list[str | None] = [f"no answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        fault[0] = _fault(endpoint)

    # looking up a host's name has no timeout of its own, and a daemon does not hold the program up
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()

    def wait() -> str | None:
        asking.join(PROBE_SECONDS)
        return fault[0]

    return wait


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT") or ENDPOINT


def offline() -> str | None:
    """The setting that forbids downloads, where it is set."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in YES), None)


def judge_hub(address: str, setting: str | None, fault: str | None) -> Finding:
    """Whether the hub can be reached. It is not needed for the tiny world, nor for models and data that are here."""
    values = {"endpoint": address, "offline": setting, "fault": fault}
    if setting is not None:
        found = f"not asked, since {setting} is set: what is in the cache can be used"
        return Finding("hub", "note", found, f"unset {setting} to download more", values)
    if fault is not None:
        advice = (
            "what is in the cache or in local folders can be used, without a wait with HF_HUB_OFFLINE=1; for more, "
            "look at the network and its proxy"
        )
        return Finding("hub", "note", f"no answer from {address} ({fault})", advice, values)
    return Finding("hub", "ok", f"{address} answers", values=values)


def _fault(address: str) -> str | None:
    proxies = urllib.request.getproxies()
    if "all" in proxies or any(proxy.startswith("socks") for proxy in proxies.values()):
        return "a proxy is set through which only the hub's own library can ask"
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return str(error) if error.code in PROXY_FAULTS else None
    except urllib.error.URLError as error:
        # certificates are the library's to judge: it may know others than Python does
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None
