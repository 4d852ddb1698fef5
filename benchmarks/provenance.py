"""What every result file says of where it comes from: command, hardware, commit."""

import os
import platform
import subprocess
from pathlib import Path


def provenance(command: str) -> dict[str, str]:
    """The first keys of a result: the command that makes it again, the machine, and the commit of this checkout."""
    return {
        "command": command,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this checkout; "-dirty" behind it where files differ from it."""
    here = Path(__file__).parent
    answer = subprocess.run(
        ["git", "describe", "--always", "--abbrev=40", "--dirty"], capture_output=True, text=True, cwd=here
    )
    return answer.stdout.strip()
