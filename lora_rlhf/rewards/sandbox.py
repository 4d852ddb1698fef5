"""Runs Python code that a model wrote against tests: no network, an empty folder, limits of time, memory and processes.

This file is also the program that does so (`python -I sandbox.py`), so it imports the standard library alone. It
needs Linux: new namespaces of user, mount, network, process and IPC (unshare(2)) in which every file system is
read-only but an empty one in memory, then rlimits, then another Python without any privilege. Files can still be read.
"""

import contextlib
import ctypes
import json
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER = 0x00020000, 0x08000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV = 0x4000, 0x40000, 0x2, 0x4
SYS_MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, -100, 0x8000, 0x1
PR_SET_NO_NEW_PRIVS = 38
NOBODY = 65534
MOST_PROCESSES, MOST_FILES = 64, 64
MOST_PIDS = 301  # the smallest that Linux takes
REFUSED = 97  # exit status: the system lacks a means of isolation
WAIT = 10.0  # seconds beyond the limit that starting and ending may take

# Runs in the innermost process. The secret shows that the line of results was written after the last test.
HARNESS = """
import json, os, sys
task = json.loads(sys.stdin.read())
results = os.fdopen(os.dup(1), "w")
null = os.open(os.devnull, os.O_RDWR)
for number in (0, 1, 2):
    os.dup2(null, number)
space, passed = {"__name__": "answer"}, 0
try:
    exec(compile(task["code"], "answer.py", "exec"), space)
    for test in task["tests"]:
        try:
            exec(compile(test, "test.py", "exec"), space)
            passed += 1
        except BaseException:
            pass
except BaseException:
    pass
results.write(task["secret"] + " " + str(passed))
results.flush()
os._exit(0)
"""


def run_tests(code: str, tests: Sequence[str], seconds: float, memory_mib: int, isolated: bool) -> int:
    """How many of the tests (statements) pass after the code ran; 0 for code that hangs, dies or takes too much.

    RuntimeError where the system lacks the means to isolate the code.
    """
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="answer-") as folder:
        task = {"code": code, "tests": list(tests), "secret": secret}
        limits = {"seconds": seconds, "memory": memory_mib * 2**20, "isolated": isolated, "folder": folder}
        process = subprocess.Popen(
            [sys.executable, "-I", __file__, json.dumps(limits)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={"PATH": os.defpath}, cwd=folder, start_new_session=True,
        )  # fmt: skip
        try:
            written, errors = process.communicate(json.dumps(task).encode(), timeout=seconds + WAIT)
        except subprocess.TimeoutExpired:
            written, errors = b"", b""
        finally:
            _kill_group(process)
    if process.returncode == REFUSED:
        raise RuntimeError(
            f"code of a model is not run: this system cannot isolate it ({errors.decode(errors='replace').strip()}). "
            "code_tests(isolated=False) runs it with limits, but with network and your files"
        )
    words = written[-100:].decode(errors="replace").split()
    return int(words[-1]) if words[-2:-1] == [secret] else 0


def _kill_group(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    process.wait()


# ---------------------------------------------------------------------------------------------------------------------
# the program


def main(limits: dict[str, Any]) -> int:
    """Isolates a new process, waits for it within the time limit, and kills it with all that it started."""
    if limits["isolated"]:
        try:
            _unshare()
        except (OSError, AttributeError) as error:
            print(error, file=sys.stderr)
            return REFUSED
    child = os.fork()  # the first process of its namespace: when it dies, all others in there die
    if child == 0:
        try:
            _run_harness(limits)
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(REFUSED)
    deadline, status = time.monotonic() + limits["seconds"], 0
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 1


def _unshare() -> None:
    """Moves this process into new namespaces, as nobody. OSError where that is not allowed."""
    user, group = os.getuid(), os.getgid()
    _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
    for name, line in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        Path(f"/proc/self/{name}").write_text(line)


def _run_harness(limits: dict[str, Any]) -> None:
    """Makes everything read-only but the folder, sets the limits, and becomes the Python that runs the harness."""
    folder, memory = limits["folder"], limits["memory"]
    if limits["isolated"]:
        _call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None)
        _call("mount", b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV, None)  # of this namespace: no other process
        with contextlib.suppress(OSError):  # RLIMIT_NPROC does not bind root; Linux before 6.14 has no such number
            Path("/proc/sys/kernel/pid_max").write_text(str(MOST_PIDS))
        read_only = (ctypes.c_uint64 * 4)(MOUNT_ATTR_RDONLY, 0, 0, 0)
        _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, b"/", AT_RECURSIVE, read_only, ctypes.c_size_t(32))
        _call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", MS_NOSUID | MS_NODEV, b"size=%d" % memory)
        _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.chdir(folder)
    seconds = int(limits["seconds"]) + 1
    for kind, most in (
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, memory),
        (resource.RLIMIT_NOFILE, MOST_FILES),
        (resource.RLIMIT_CORE, 0),
        *([(resource.RLIMIT_NPROC, MOST_PROCESSES)] if limits["isolated"] else []),  # counted within the namespace
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    # exec takes away what privileges nobody had in the new namespaces: it cannot make anything writable again
    os.execve(sys.executable, [sys.executable, "-I", "-c", HARNESS], {"PATH": os.defpath, "HOME": folder})


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of the C library. OSError that names it where it fails."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
