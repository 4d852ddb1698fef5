"""`lora-rlhf package`: what somebody else needs to repeat and to judge a run, in one file that can be checked."""

from pathlib import Path

from lora_rlhf.configs.values import check
from lora_rlhf.release.bundle import MANIFEST, verify_bundle, write_bundle
from lora_rlhf.release.collect import Collection
from lora_rlhf.release.config import PackageConfig
from lora_rlhf.release.paths import require_no_secrets
from lora_rlhf.system.errors import UserError

SHOWN = 20


def package(config: PackageConfig) -> tuple[bool, str]:
    """Packs a run, or verifies a package: (whether all is as it should be, what to say).

    UserError before anything is written: no run, a package that is there already, a file of the run that cannot be
    read, a secret in one.
    """
    check(config)
    if config.verify is not None:
        return _verify(Path(config.verify))
    assert config.folder is not None and config.to is not None  # else the configuration was at fault
    run, to = Path(config.folder), Path(config.to)
    if to.exists() and not config.overwrite:
        raise UserError(f"{to}: is there already; --overwrite replaces it")
    if not to.absolute().parent.is_dir():
        raise UserError(f"{to}: the folder {to.parent} is not there; make it, or choose another place")
    if to.resolve() == run.resolve() or run.resolve().is_relative_to(to.resolve()):
        raise UserError(f"{to}: holds the run itself; choose another place")
    collection = Collection(config, run)
    require_no_secrets({name: content for name, content in collection.files.items() if isinstance(content, bytes)})
    digest = write_bundle(to, collection.files, collection.about)
    lines = [f"{to}: {len(collection.files)} files; sha256 of its {MANIFEST}: {digest}"]
    return True, "\n".join([*lines, *(f"not packed: {what}: {why}" for what, why in collection.left_out.items())])


def _verify(path: Path) -> tuple[bool, str]:
    num_sound, faults, digest = verify_bundle(path)
    if not faults:
        return True, f"{path}: {num_sound} files are as they were packed; sha256 of its {MANIFEST}: {digest}"
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return False, "\n".join([f"{path}: {len(faults)} differences from what was packed", *faults[:SHOWN], *more])
