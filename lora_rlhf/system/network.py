"""Whether the hub can be reached: asked once, before its library would try for a minute."""

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
    """The setting that forbids downloads, where it is set."""
    return next((name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in YES), None)


def only_library_can_ask() -> bool:
    """Whether the environment's proxies are ones that need more than Python's own library."""
    proxies = urllib.request.getproxies()
    return "all" in proxies or any(proxy.startswith("socks") for proxy in proxies.values())


def hub_fault() -> str | None:
    """The hub's address and why it cannot be reached, known within seconds.

    None where it answers anything at all, and where only the library can ask.
    """
    if only_library_can_ask():
        return None
    address = endpoint()
    fault = ask_hub(address)()
    return f"{address}: {fault}" if fault else None


def ask_hub(address: str) -> Callable[[], str | None]:
    """Asks in the background. The function that it gives waits, and says why no answer came; None if one did."""
    fault: list[str | None] = [f"no answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        fault[0] = _probe(address)

    # looking up a host's name has no timeout of its own, and a daemon does not hold the program up
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()

    def wait() -> str | None:
        asking.join(PROBE_SECONDS)
        return fault[0]

    return wait


def _probe(address: str) -> str | None:
    """Why the address does not answer; None if it answers anything. Proxies are the environment's."""
    try:
        request = urllib.request.Request(address, method="HEAD")
        # an opener of its own: the shared one remembers the proxies that there were on its first use
        urllib.request.build_opener().open(request, timeout=PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:
        return str(error) if error.code in PROXY_FAULTS else None
    except urllib.error.URLError as error:
        # certificates are the library's to judge: it may know others than Python does
        return None if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except (OSError, ValueError) as error:
        return str(error)
    return None
