"""Bugs that are planted in the shell, to show that the simulation finds such bugs."""

from simulation.mutants import archive, members, persisting, serving, snapshots, upgrades
from support.planted import Mutant, plant

MUTANTS: tuple[Mutant, ...] = (
    *persisting.MUTANTS,
    *snapshots.MUTANTS,
    *serving.MUTANTS,
    *members.MUTANTS,
    *upgrades.MUTANTS,
    *archive.MUTANTS,
)

__all__ = ["MUTANTS", "Mutant", "plant"]
