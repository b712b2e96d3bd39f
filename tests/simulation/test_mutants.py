"""Planted bugs are found by rules. `make sim-mutants` hunts all of them; here those that few seeds find."""

import pytest

from simulation.mutants import MUTANTS, Mutant
from support.planted import edited, source_of

MUTANTS_MIN = 40


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_pieces_that_a_bug_replaces_are_in_the_source(mutant: Mutant) -> None:
    for module in {module for module, _, _ in mutant.edits}:
        source = source_of(module)
        changed = edited(source, [(old, new) for name, old, new in mutant.edits if name == module])
        compile(changed, module, "exec")
        assert changed != source


def test_there_are_enough_and_each_says_what_it_breaks() -> None:
    assert len(MUTANTS) >= MUTANTS_MIN
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.cites for mutant in MUTANTS)


def test_a_piece_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 times"):
        edited("a = 1\n", [("b = 2", "b = 3")])
    with pytest.raises(ValueError, match="2 times"):
        edited("a = 1\na = 1\n", [("a = 1", "a = 2")])
