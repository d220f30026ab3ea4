"""Run a module without what Windows lacks: ``python -m tests.helpers.without_posix MODULE [ARGUMENT …]``.

The platform keeps its name, as the standard library's own choices hang on it; what our code could lean on is gone.
"""

import asyncio
import os
import runpy
import shutil
import signal
import stat
import sys
from typing import Any, Final

MODULES: Final = "fcntl grp pwd resource syslog termios tty pty crypt readline"
NAMES: Final = (
    "chown fchmod fchown fork forkpty getegid geteuid getgid getgroups getloadavg getpgid killpg lchown mkfifo "
    "mknod nice openpty posix_fadvise posix_fallocate pread pwrite register_at_fork sched_yield sendfile setsid "
    "setuid statvfs sync sysconf wait O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC"
)
SIGNALS: Final = "SIGALRM SIGHUP SIGQUIT SIGUSR1 SIGUSR2"


def hide() -> None:
    """Take away the modules and names; files have one mode bit (read-only), loops no signal handlers."""
    usage = shutil.disk_usage(".")
    for name in MODULES.split():
        sys.modules[name] = None  # type: ignore[assignment] # importing it fails
    for name in NAMES.split():
        vars(os).pop(name, None)
    for name in SIGNALS.split():
        vars(signal).pop(name, None)

    chmod, opened = os.chmod, os.open

    def chmod_on_windows(path: Any, mode: int, **options: Any) -> None:
        chmod(path, 0o666 if mode & stat.S_IWRITE else 0o444, **options)

    def open_on_windows(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        descriptor = opened(path, flags, mode, **options)
        if flags & os.O_CREAT:
            chmod_on_windows(path, mode)
        return descriptor

    def add_signal_handler(*arguments: object) -> None:
        raise NotImplementedError

    shutil.disk_usage = lambda path: usage  # on Windows it needs no statvfs
    os.chmod = chmod_on_windows
    os.open = open_on_windows
    asyncio.SelectorEventLoop.add_signal_handler = add_signal_handler  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    del sys.argv[0]
    hide()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
