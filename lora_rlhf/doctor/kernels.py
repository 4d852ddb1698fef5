"""What is said of the 4-bit kernels of a device."""

from lora_rlhf.doctor.findings import Finding, Status
from lora_rlhf.system.kernel_trial import SIZE, TOKENS, Trial


def fused_finding(version: str | None, python: str) -> Finding:
    """Whether fused kernels could be used on a GPU. version: of liger-kernel, None where it is not installed."""
    if version is None:
        command = f"{python} -m pip install liger-kernel"
        return Finding(
            "fused kernels", "note", "liger-kernel is not installed; it saves memory and time", "", {}, command
        )
    text = f"liger-kernel {version} is installed: --fused_kernels liger uses its norms, rotations and gates"
    return Finding("fused kernels", "ok", text, values={"liger-kernel": version})


def kernel_finding(device: str, trial: Trial | None, fault: str = "", is_needed: bool = True) -> Finding:
    """Whether 4-bit layers work on a device.

    fault: why there is no trial. is_needed: whether a run uses this device.
    """
    check = f"4-bit {device}"
    severity: Status = "problem" if is_needed else "note"
    if trial is None:
        advice = "`python -m bitsandbytes` says more; --quantization none does without 4-bit layers"
        return Finding(check, severity, f"does not work: {fault}", advice, {"fault": fault})
    error = trial.largest_error
    agreement = f"agree with float32 to {error:.1e}" if error else "are equal to those of float32"
    text = (
        f"NF4 layer in {trial.dtype}: forward and backward {agreement}; {trial.milliseconds:.1f} ms for {TOKENS} "
        f"tokens through {SIZE} x {SIZE}"
    )
    values = dict(vars(trial))
    if not trial.is_correct:
        errors_text = (
            f"gives wrong results: errors of {trial.rounding:.1e} in the weights, {trial.forward:.1e} forward, "
            f"{trial.backward:.1e} backward, {trial.single:.1e} for a single token"
        )
        advice = "install the tested bitsandbytes and PyTorch (above), or use --quantization none"
        return Finding(check, severity, errors_text, advice, values)
    if not trial.kept:
        advice = "install the tested bitsandbytes; until then use --quantization none"
        return Finding(check, severity, "the frozen weights changed while they were used", advice, values)
    if trial.repacks:
        text += "; bitsandbytes would repack weights for this CPU's AVX512-BF16, which is switched off here"
    if not trial.own_library:
        advice = "bitsandbytes' own library did not load, and PyTorch's slower code is used: `python -m bitsandbytes`"
        return Finding(check, "note", text, advice, values)
    return Finding(check, "ok", text, values=values)
