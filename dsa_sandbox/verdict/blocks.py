"""Blocks: all results of one seed, the unit of every statistic; no torch."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Experiment = Literal["single", "stream"]
Figures = Mapping[str, Any]


class ArmKey(NamedTuple):
    """What names an arm within a block."""

    experiment: Experiment
    arch: str
    strategy: str
    placebo: bool = False
    variant: str = (
        ""  # settings in which it differs from the plain arm, as `variant_of` writes them
    )

    @property
    def named(self) -> str:
        """Architecture, strategy and variant, as a reader sees them."""
        placebo = ["placebo"] if self.placebo else []
        variant = [f"({self.variant})"] if self.variant else []
        return " ".join([self.arch, self.strategy, *placebo, *variant])


class Block(NamedTuple):
    """The results of one seed: its bases, and the arms learned from them on its own tasks."""

    seed: int
    # `figures` of the manifests of pre-trained runs, by `base_name`
    bases: Mapping[str, Figures]
    # figures of metrics.arm, after arm.together
    arms: Mapping[ArmKey, Figures]


def variant_of(settings: Mapping[str, Any]) -> str:
    """Settings as `key=value`, sorted by key, joined by a comma and a space."""
    return ", ".join(f"{key}={settings[key]}" for key in sorted(settings))


def base_name(arch: str, variant: str = "") -> str:
    """The name of a base in a block: its architecture and, behind a comma, its variant."""
    return ", ".join(part for part in (arch, variant) if part)
