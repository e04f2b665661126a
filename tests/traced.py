"""strace, attached to a process that waits: what it calls, and its death at any of the calls."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace, which kills at a system call, is missing"
)

ALIKE = {
    "openat": "open", "pwrite64": "pwrite", "linkat": "link", "renameat": "rename",
    "renameat2": "rename", "unlinkat": "unlink", "mkdirat": "mkdir", "fdatasync": "fsync",
    "ftruncate": "truncate", "fchmod": "chmod", "fchmodat": "chmod", "replace": "rename",
    "remove": "unlink",
}  # fmt: skip
"""System calls, and functions of Python's `os`, by the one name that both have here."""

CHANGING = (
    "open,openat,creat,write,pwrite64,writev,pwritev,link,linkat,symlink,symlinkat,rename,"
    "renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,fsync,fdatasync,"
    "sync_file_range,truncate,ftruncate,fallocate,chmod,fchmod,fchmodat,flock,copy_file_range,"
    "sendfile,setxattr,fsetxattr"
)
"""Every system call by which a file or folder can change, or that puts changes in order."""

_LINE = re.compile(r"^\d+ +(?P<call>\w+)\((?P<arguments>.*)$")


@dataclass(frozen=True)
class Tracing:
    """What strace is to do with the process: tell these calls, or kill it at one of them."""

    calls: str = CHANGING
    kill: str = ""

    @contextmanager
    def attached(self, process_id: int, log: Path) -> Iterator[None]:
        """Attach to the process and its threads to come; inside, it is traced."""
        command = ["strace", "-f", "-y", "-p", str(process_id), "-o", str(log)]
        command += ["-e", f"trace={self.calls}"]
        command += ["-e", f"inject={self.kill}"] if self.kill else []
        strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        with strace:
            line = strace.stderr.readline()
            if "attached" not in line:
                strace.kill()
                pytest.skip(f"strace may not attach to a process here: {line}")
            yield


def changes(log: Path, folder: Path) -> Counter[str]:
    """Return how often each call that changes `folder`, or orders its changes, was made."""
    found: Counter[str] = Counter()
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None or str(folder) not in match["arguments"]:
            continue
        name = ALIKE.get(match["call"], match["call"])
        if name != "open" or "O_CREAT" in match["arguments"]:
            found[name] += 1
    return found


def most_in_a_thread(log: Path) -> Counter[str]:
    """Return how often a thread made each call at most: so far strace counts for a death."""
    found = Counter(
        (line.split()[0], match["call"])
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines()
        if (match := _LINE.match(line))
    )
    most: Counter[str] = Counter()
    for (_, call), count in found.items():
        most[call] = max(most[call], count)
    return most
