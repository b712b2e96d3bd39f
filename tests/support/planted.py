"""How a bug is planted: a piece of a module's source is replaced when the module is imported, in an interpreter that runs nothing else.

Knows Python's import system. Does not know which bugs there are. Invariant: a piece that is not in the source exactly once is an error, so
that no bug is planted in vain when the source changes.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType


@dataclass(frozen=True)
class Mutant:
    """`cites`: the rule or line of the consensus notes that it breaks. `edits`: (module, piece of its source, what it becomes)."""

    name: str
    cites: str
    edits: tuple[tuple[str, str, str], ...]


def edited(source: str, edits: Sequence[tuple[str, str]]) -> str:
    """The source with each piece replaced. Raises ValueError for a piece that is not there exactly once."""
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"this piece is {source.count(old)} times in the source, not once:\n{old}")
        source = source.replace(old, new)
    return source


def source_of(module: str) -> str:
    spec = importlib.machinery.PathFinder.find_spec(module, _path_of(module))
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}")
    return Path(spec.origin).read_text()


def _path_of(module: str) -> list[str] | None:
    parent = module.rpartition(".")[0]
    if not parent:
        return None
    return list(importlib.import_module(parent).__path__)


class _Planter(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, mutant: Mutant) -> None:
        self._edits: dict[str, list[tuple[str, str]]] = {}
        for module, old, new in mutant.edits:
            self._edits.setdefault(module, []).append((old, new))

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._edits:
            return None
        found = importlib.machinery.PathFinder.find_spec(fullname, _path_of(fullname))
        assert found is not None and found.origin is not None
        return importlib.util.spec_from_file_location(fullname, found.origin, loader=_Source(fullname, found.origin, self._edits[fullname]))


class _Source(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, edits: Sequence[tuple[str, str]]) -> None:
        super().__init__(name, path)
        self._edits = edits

    def exec_module(self, module: ModuleType) -> None:
        source = edited(Path(self.path).read_text(), self._edits)
        exec(compile(source, self.path, "exec"), module.__dict__)


def plant(mutant: Mutant) -> None:
    """Plant a bug. The modules that it is in must not have been imported yet."""
    for module in {module for module, _, _ in mutant.edits}:
        if module in sys.modules:
            raise RuntimeError(f"{module} was imported before the bug was planted")
    sys.meta_path.insert(0, _Planter(mutant))
