"""Giving up root: what the processes that face the internet do once their ports are open."""

from __future__ import annotations

import ctypes
import os
import pwd
from typing import Final

UNPRIVILEGED_USERS: Final = ("codius", "nobody")
"""The first of these that exists; nobody is on every machine."""
PR_SET_PDEATHSIG: Final = 1
PR_GET_PDEATHSIG: Final = 2
PR_SET_NO_NEW_PRIVS: Final = 38


def drop() -> None:
    """Become an unprivileged user for good; nothing to do for a process that is one already.

    The kernel clears all capabilities on the change of uid (capabilities(7)); no_new_privs keeps
    set-uid programs from giving them back.
    """
    if os.geteuid() != 0:
        return
    account = _find_account()
    libc = ctypes.CDLL(None, use_errno=True)
    parent_death_signal = ctypes.c_int()
    libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(parent_death_signal))
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    # the change of uid clears it (prctl(2)), and the parent still means it
    libc.prctl(PR_SET_PDEATHSIG, parent_death_signal.value)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) failed")


def _find_account() -> pwd.struct_passwd:
    for name in UNPRIVILEGED_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise LookupError(f"none of the users {', '.join(UNPRIVILEGED_USERS)} exists on this machine")
