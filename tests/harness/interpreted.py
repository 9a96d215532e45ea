"""The front door's modules as they are written, beside the compiled ones: a test can inherit from these."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import codius_proxy


def load(*names: str) -> list[ModuleType]:
    """In this order, each with those before it; everything else they import is what everybody has."""
    full = [f"{codius_proxy.__name__}.{name}" for name in names]
    kept = {name: sys.modules.pop(name) for name in full if name in sys.modules}
    try:
        return [_load(name, Path(codius_proxy.__path__[0], f"{name.rpartition('.')[2]}.py")) for name in full]
    finally:
        for name in full:
            sys.modules.pop(name, None)
        sys.modules.update(kept)


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
