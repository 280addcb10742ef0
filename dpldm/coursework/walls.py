"""First program in a new set of namespaces: builds a file system of what a submission needs, then starts the worker.

    unshare --user --map-root-user --net --mount --pid --ipc --uts --fork --kill-child python -P walls.py JSON

Everything is left out that is not named: home folders, other submissions, the masters and the hidden checks are not
there to be read. What is there is read-only, but for a scratch folder in memory that vanishes with the process.
Linux 5.12 or later (`mount_setattr`); standard library only. As in bubblewrap, the old root is pivoted away.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

BIND, RECURSIVE, PRIVATE, NO_SETUID, NO_DEVICES, DETACH = 4096, 16384, 1 << 18, 2, 4, 2  # of <sys/mount.h>
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
MOUNT_SETATTR, WHOLE_TREE = 442, 0x8000  # the same number on all machines; AT_RECURSIVE
SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/sys/devices/system/cpu")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Refuse a system call that returned other than 0.

    Raises:
        OSError: with the system's reason.
    """
    if result:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    """mount(2), with its flags as a number."""
    words = [None if word is None else word.encode() for word in (source, target, kind, options)]
    check(libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount {target}")


def make_read_only(folder: str) -> None:
    """All mounts below a folder, those that came along with a bound folder included."""

    class Attributes(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns")]

    wanted = Attributes(set=1)  # MOUNT_ATTR_RDONLY
    arguments = (-1, folder.encode(), WHOLE_TREE, ctypes.byref(wanted), ctypes.sizeof(wanted))
    check(libc.syscall(MOUNT_SETATTR, *arguments), f"read-only {folder}")


def show(path: str, root: str) -> None:
    """Make a file or folder visible below the new root, under the same path; a link stays a link."""
    source, target = Path(path), Path(root + path)
    if not source.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_symlink():
        target.symlink_to(source.readlink())
        return
    if source.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount(path, str(target), None, BIND | RECURSIVE)


def build(root: str, visible: list[str], scratch: str, scratch_bytes: int) -> None:
    """The new file system, and into it."""
    mount("none", "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NO_SETUID | NO_DEVICES, "size=1m,mode=755")
    for path in (*SYSTEM, *DEVICES, *sorted(visible, key=len)):
        show(path, root)
    for folder in ("/proc", scratch, "/dev/shm"):
        Path(root + folder).mkdir(parents=True, exist_ok=True)
    mount("proc", root + "/proc", "proc", NO_SETUID | NO_DEVICES)
    Path(root + "/proc/sys/user/max_user_namespaces").write_text("0")  # no new ones from inside
    make_read_only(root)  # /proc too: to the kernel this user may be root, who may write /proc/sys
    for folder in (scratch, "/dev/shm"):
        mount("tmpfs", root + folder, "tmpfs", NO_SETUID | NO_DEVICES, f"size={scratch_bytes},mode=1777")
    os.chdir(root)
    check(libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    check(libc.umount2(b".", DETACH), "umount of the old root")
    os.chdir(scratch)


def main() -> None:
    """Build the walls that the first argument, JSON, asks for, and become the command inside them."""
    asked = json.loads(sys.argv[1])
    build(asked["root"], asked["visible"], asked["scratch"], asked["scratch_bytes"])
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    os.execvp(drop[0], [*drop, *asked["command"]])


if __name__ == "__main__":
    main()
