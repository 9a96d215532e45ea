"""What pyproject.toml cannot say: the modules that every visitor's byte passes through are compiled.

mypyc (https://mypyc.readthedocs.io) turns them into C as they are; nothing in them is written for it alone.
`python setup.py build_ext --inplace` compiles a tree that is worked on: `make setup` does, when one of them
has changed. Without the compiled ones the same modules are interpreted, at twice the CPU time per request.
"""

import os
import shlex
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup

COMPILED = (
    "access_log", "admission", "channel", "chunked", "connection", "exchange", "fields", "identity", "memo",
    "metrics", "outbox", "poller", "pool", "request", "request_reader", "response", "response_reader",
    "routes", "secure_channel", "site", "tunnel", "turns", "upstream", "visit",
)  # fmt: skip


def require_compiler() -> None:
    """Says what is missing before mypyc, setuptools and pip each add their pages to it.

    It is no reason to go on without: pip would not show the warning, and every request would pay for it.
    """
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC"))
    asked = [*compiler, "-I", sysconfig.get_path("include"), "-fsyntax-only", "-x", "c", "-"]
    try:
        done = subprocess.run(
            asked, input="#include <Python.h>\n", text=True, capture_output=True, check=False
        )
        trouble = done.stderr.strip() if done.returncode else ""
    except OSError as error:
        trouble = f"{compiler[0]}: {error.strerror}"
    if trouble:
        sys.exit(
            f"{trouble}\n\n"
            "The front door's data path needs a C compiler, libc's headers and Python's to be compiled.\n"
            "Debian and Ubuntu have them with: apt install gcc libc6-dev python3-dev\n"
            "Or make the wheel where they are, with the same Python: python3 -m pip wheel --no-deps ."
        )


def extensions() -> list[Extension]:
    # pip and setuptools ask many things of this file that need no compiler. An editable tree is compiled by
    # make, whenever a source is newer.
    if not {"build_ext", "bdist_wheel"} & set(sys.argv):
        return []
    require_compiler()
    from mypyc.build import mypycify

    paths = [f"proxy/codius_proxy/{name}.py" for name in COMPILED]
    found = mypycify(paths, group_name="codius_proxy.compiled", opt_level="3", debug_level="0")
    for extension in found:
        # mypyc says -Werror. A warning that only a newer compiler has would keep a stranger from installing.
        extension.extra_compile_args.append("-Wno-error")
    return found


setup(ext_modules=extensions())
