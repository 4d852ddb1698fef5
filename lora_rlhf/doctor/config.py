"""What a person can choose when the machine is examined."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """What this machine can run, and what to fix. Exits with 1 if something needed does not work."""

    run: str = "runs"
    """Folder of the runs to come: its disk is checked for room and locks."""
    json: bool = False
    """Print the findings as JSON."""

    def faults(self) -> list[str]:
        """Everything wrong with these values."""
        return [] if self.run else ["run is empty; name a folder, for example runs"]
