"""Whether the hub can be reached: one request, because its library would retry for a minute."""

import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

ENDPOINT = "https://huggingface.co"
PROBE_SECONDS = 4.0
PROXY_FAULTS = {502, 503, 504}  # a proxy's own answer when it reaches nothing
YES = {"1", "ON", "YES", "TRUE"}
OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def endpoint() -> str:
    """The address of the hub."""
    return os.environ.get("HF_ENDPOINT") or ENDPOINT


def offline() -> str | None:
    """The environment variable that forbids downloads; None where none is set."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in YES), None)


def needs_library() -> bool:
    """Whether the environment's proxies need more than Python's own library (SOCKS, or one for all schemes)."""
    proxies = urllib.request.getproxies()
    return "all" in proxies or any(proxy.startswith("socks") for proxy in proxies.values())


def hub_fault() -> str | None:
    """The hub's address and why it cannot be reached, known within seconds.

    None where it answers anything at all, and where only the hub's own library can ask.
    """
    if needs_library():
        return None
    address = endpoint()
    fault = ask_hub(address)()
    return f"{address}: {fault}" if fault else None


def ask_hub(address: str) -> Callable[[], str | None]:
    """Asks in the background. Returns a function that waits and returns why no answer came; None if one came."""
    fault: list[str | None] = [f"no answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        fault[0] = _probe_address(address)

    # a lookup of a host's name has no timeout, and a daemon thread does not delay the end of the program
    request = threading.Thread(target=ask, daemon=True)
    request.start()

    def wait() -> str | None:
        request.join(PROBE_SECONDS)
        return fault[0]

    return wait


def _probe_address(address: str) -> str | None:
    """Why the address does not answer; None if it answers anything. Proxies are the environment's."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        # a new opener: the shared one keeps the proxies of its first use
        urllib.request.build_opener().open(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return str(error) if error.code in PROXY_FAULTS else None
    except urllib.error.URLError as error:
        # the hub's library decides about certificates: it may know others than Python does
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None
