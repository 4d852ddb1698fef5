"""`lora-rlhf package`: packs all that others need to repeat and to judge a run into one file with hashes."""

from pathlib import Path

from lora_rlhf.configs.values import check
from lora_rlhf.release.bundle import MANIFEST, check_package, write_package
from lora_rlhf.release.collect import PackageFiles
from lora_rlhf.release.config import PackageConfig
from lora_rlhf.release.paths import require_no_secrets
from lora_rlhf.system.errors import UserError

MOST_FAULTS = 20


def package(config: PackageConfig) -> tuple[bool, str]:
    """Packs a run, or checks a package; returns (whether all is well, the message to print).

    Raises UserError before it writes: for a missing run, an existing package, a file of the run that cannot be read,
    and a secret in a file.
    """
    check(config)
    if config.verify is not None:
        return _verify_package(Path(config.verify))
    assert config.folder is not None and config.to is not None  # else the configuration was at fault
    run, target = Path(config.folder), Path(config.to)
    if target.exists() and not config.overwrite:
        raise UserError(f"{target}: is there already; --overwrite replaces it")
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target}: the folder {target.parent} is not there; make it, or choose another place")
    if target.resolve() == run.resolve() or run.resolve().is_relative_to(target.resolve()):
        raise UserError(f"{target}: holds the run itself; choose another place")
    package_files = PackageFiles(config, run)
    require_no_secrets({name: content for name, content in package_files.files.items() if isinstance(content, bytes)})
    manifest_hash = write_package(target, package_files.files, package_files.manifest_facts)
    lines = [f"{target}: {len(package_files.files)} files; sha256 of its {MANIFEST}: {manifest_hash}"]
    return True, "\n".join(
        [*lines, *(f"not packed: {name}: {reason}" for name, reason in package_files.left_out.items())]
    )


def _verify_package(path: Path) -> tuple[bool, str]:
    """Compares a package with its manifest; returns (whether all files are unchanged, the message to print)."""
    num_unchanged, faults, manifest_hash = check_package(path)
    if not faults:
        return True, f"{path}: {num_unchanged} files are as they were packed; sha256 of its {MANIFEST}: {manifest_hash}"
    rest_line = [f"and {len(faults) - MOST_FAULTS} more"] if len(faults) > MOST_FAULTS else []
    return False, "\n".join(
        [f"{path}: {len(faults)} differences from what was packed", *faults[:MOST_FAULTS], *rest_line]
    )
