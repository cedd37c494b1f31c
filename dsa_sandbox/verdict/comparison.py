"""Signed sums of arms: what a claim compares, in one block; no torch."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dsa_sandbox.verdict.blocks import ArmKey, Block, Experiment

DRAW = re.compile(r"random-mask\.draw=\d+")  # draws of a mask are repetitions of one arm


class Comparison(NamedTuple):
    """A signed sum of arms of one experiment; the first is the hypothesis' own, with sign 1.

    Below zero, the first arm is damaged (or loses) less.
    """

    title: str
    signed: tuple[tuple[int, ArmKey], ...]

    @property
    def arms(self) -> list[ArmKey]:
        """The arms, the hypothesis' own first."""
        return [key for _, key in self.signed]

    @property
    def own(self) -> ArmKey:
        """The arm that the hypothesis speaks for."""
        return self.signed[0][1]

    @property
    def archs(self) -> list[str]:
        """The architectures, each once."""
        return list(dict.fromkeys(key.arch for key in self.arms))

    def in_experiment(self, experiment: Experiment) -> "Comparison":
        """The same arms in another experiment."""
        signed = tuple((sign, key._replace(experiment=experiment)) for sign, key in self.signed)
        return Comparison(self.title, signed)


def pair(first: ArmKey, second: ArmKey) -> Comparison:
    """first - second."""
    return Comparison(f"{first.named} - {second.named}", ((1, first), (-1, second)))


def interaction(first: ArmKey, second: ArmKey, third: ArmKey, fourth: ArmKey) -> Comparison:
    """[first - second] - [third - fourth]."""
    title = f"[{first.named} - {second.named}] - [{third.named} - {fourth.named}]"
    return Comparison(title, ((1, first), (-1, second), (-1, third), (1, fourth)))


def single(arch: str, strategy: str, variant: str = "") -> ArmKey:
    """An arm of single tasks."""
    return ArmKey("single", arch, strategy, variant=variant)


def stream(arch: str, strategy: str, variant: str = "") -> ArmKey:
    """An arm of a stream."""
    return ArmKey("stream", arch, strategy, variant=variant)


def pieces(variant: str) -> list[str]:
    """The settings of a variant, each as `key=value`."""
    return [piece for piece in variant.split(", ") if piece]


def without_draw(key: ArmKey) -> ArmKey:
    """The arm without the number of its mask."""
    kept = [piece for piece in pieces(key.variant) if not DRAW.fullmatch(piece)]
    return key._replace(variant=", ".join(kept))


def draws(block: Block, key: ArmKey) -> list[ArmKey]:
    """The block's arms that are this arm, or draws of its mask; empty where it was not run."""
    if key in block.arms and without_draw(key) != key:
        return [key]  # one draw was asked for
    return [one for one in block.arms if one == key or without_draw(one) == key]


def variants(blocks: Iterable[Block], key: ArmKey, *settings: str) -> list[str]:
    """Variants of an arm in which nothing but the named settings differs, in order, each once.

    A name that ends with a point stands for all settings of its section.
    """
    found = set()
    for block in blocks:
        for one in block.arms:
            changed = [piece.partition("=")[0] for piece in pieces(one.variant)]
            if one._replace(variant="") != key._replace(variant="") or not changed:
                continue
            if all(any(named_by(name, setting) for setting in settings) for name in changed):
                found.add(one.variant)
    return sorted(found)


def named_by(name: str, setting: str) -> bool:
    """Whether a setting is the one named, or of the section named."""
    return name.startswith(setting) if setting.endswith(".") else name == setting


def missing(block: Block, comparisons: Sequence[Comparison]) -> list[ArmKey]:
    """Arms of the comparisons that the block lacks, each once."""
    wanted = dict.fromkeys(key for one in comparisons for key in one.arms)
    return [key for key in wanted if not draws(block, key)]
