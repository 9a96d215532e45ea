"""What pyproject.toml cannot say: the modules that every visitor's byte passes through are compiled.

mypyc (https://mypyc.readthedocs.io) turns them into C as they are; nothing in them is written for it alone.
`python setup.py build_ext --inplace` compiles a tree that is worked on: `make setup` does, when one of them
has changed. Without the compiled ones the same modules are interpreted, at twice the CPU time per request.
"""

import sys

from setuptools import Extension, setup

COMPILED = (
    "admission", "channel", "chunked", "connection", "exchange", "fields", "identity", "memo", "metrics",
    "poller", "pool", "recorder", "request", "request_reader", "response", "response_reader", "routes",
    "secure_channel", "site", "tunnel", "turns", "upstream", "visit",
)  # fmt: skip


def extensions() -> list[Extension]:
    # pip and setuptools ask many things of this file that need no compiler. An editable tree is compiled by
    # make, whenever a source is newer.
    if not {"build_ext", "bdist_wheel"} & set(sys.argv):
        return []
    from mypyc.build import mypycify

    paths = [f"proxy/codius_proxy/{name}.py" for name in COMPILED]
    return mypycify(paths, group_name="codius_proxy.compiled", opt_level="3", debug_level="0")


setup(ext_modules=extensions())
