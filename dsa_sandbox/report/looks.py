"""How each arm looks everywhere: one mark and colour in charts and tables, one line in pictures.

The strategy decides colour and shape, the architecture whether shapes are filled and how lines are
dashed. Colours are of the set of Okabe and Ito (2008), which colour-blind readers tell apart,
without yellow, which a white page swallows; without colour, marks, shapes and dashes tell arms
apart.
"""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

# name: colour of the 256 of a terminal, seen on light and dark grounds; colour in pictures
BLACK, BLUE, VERMILION = (244, "#333333"), (33, "#0072b2"), (202, "#d55e00")
ORANGE, SKY, GREEN, PURPLE = (178, "#e69f00"), (74, "#56b4e9"), (35, "#009e73"), (175, "#cc79a7")
GREY = (248, "#8c8c8c")
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK, GREY)
SHAPES = (
    *("circle", "square", "triangle-up", "diamond", "triangle-down", "cross"),
    *("triangle-right", "triangle-left"),
)
MARKS = "ox+*#@%&$ABCDEFGHIJKLMNPQRSTUVWYZ"  # of series that are not arms, in their order
DASHES = ((1, 0), (6, 3), (1.5, 2.5), (8, 2, 2, 2), (3, 2), (9, 3, 2, 3, 2, 3))
FILLS = ("full", "hollow", "tint")

# colour, shape, and marks on dense, dsa, dsa-full; where a mark is missing, `spare` gives one
STRATEGIES: dict[str, tuple[tuple[int, str], str, str]] = {
    "sgd": (BLACK, "circle", "o@&"),
    "ewc": (BLUE, "square", "x#%"),
    "acft": (VERMILION, "triangle-up", "+*$"),
    "random-mask": (ORANGE, "diamond", "rR"),
    "complement": (ORANGE, "triangle-down", "[]"),
    "attention-only": (ORANGE, "square", "tT"),
    "bottom-frozen": (ORANGE, "triangle-left", "bB"),
    "lora": (GREEN, "cross", "lL"),
    "ewc-proximal": (BLUE, "diamond", "eE"),
    "l2sp": (BLUE, "triangle-down", "hH"),
    "si": (BLUE, "cross", "iI"),
    "mas": (BLUE, "triangle-right", "mM"),
    "lwf": (SKY, "circle", "fF"),
    "agem": (SKY, "diamond", "aA"),
    "ogd": (SKY, "triangle-down", "dD"),
    "gpm": (SKY, "triangle-up", "gG"),
    "replay": (GREEN, "diamond", "yY"),
    "der": (GREEN, "triangle-down", "qQ"),
    "wise": (PURPLE, "square", "<>"),
    "none": (GREY, "circle", "nN"),
    "joint": (GREY, "diamond", "jJ"),
    "independent": (GREY, "triangle-up", "{}"),
}
ARCHITECTURES = {  # fill of shapes, dashes of lines; their order is that of the marks
    "dense": ("hollow", (6, 3)),
    "dsa": ("full", (1, 0)),
    "dsa-full": ("tint", (1.5, 2.5)),
    "dsa-v32": ("tint", (8, 2, 2, 2)),
}
SPARE = "0123456789?!=~^/ZXVWSCPUvzscpuw"  # none stands in the table


class Look(NamedTuple):
    """The look of a series."""

    mark: str  # one ASCII character
    colour: int  # of the 256 of a terminal
    rgb: str
    shape: str  # as Vega names it
    fill: str  # full, hollow or tint
    dash: tuple[float, ...]  # lengths of line and gap, pixels


def number_of(name: str) -> int:
    """A number that depends on the name alone."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def look_of(arch: str, strategy: str) -> Look:
    """The look of an arm, whatever stands beside it.

    A combination has the colour of its first part and the shape of its last. What an included file
    brings has a look by its name.
    """
    first, last = strategy.split("+")[0], strategy.split("+")[-1]
    drawn = number_of(strategy)
    (colour, rgb), _, marks = STRATEGIES.get(first, (COLOURS[drawn % len(COLOURS)], "", ""))
    shape = STRATEGIES[last][1] if last in STRATEGIES else SHAPES[drawn % len(SHAPES)]
    known = list(ARCHITECTURES)
    at = known.index(arch) if arch in known and first == strategy else len(marks)
    mark = marks[at] if at < len(marks) else spare(f"{arch} {strategy}", set())
    if arch in ARCHITECTURES:
        fill, dash = ARCHITECTURES[arch]
    else:
        other = number_of(arch)
        fill, dash = FILLS[other % len(FILLS)], DASHES[3 + other % 3]
    return Look(mark, colour, rgb, shape, fill, dash)


def spare(name: str, taken: set[str]) -> str:
    """The spare mark of a name, or the next one that is not taken."""
    start = number_of(name)
    order = [SPARE[(start + step) % len(SPARE)] for step in range(len(SPARE))]
    return next((mark for mark in order if mark not in taken), order[0])


def looks_of(arms: Sequence[tuple[str, str]]) -> list[Look]:
    """The looks of arms, by architecture and strategy, in one chart: no two have the same mark.

    An arm that is there again, as another seed or variant, keeps its colour and dashes, and has
    another shape and a spare mark.
    """
    own = [look_of(*arm) for arm in arms]
    tabled = {look.mark for look in own if look.mark not in SPARE}
    taken = set(tabled)
    found: list[Look] = []
    for number, (arm, look) in enumerate(zip(arms, own)):
        times = list(arms[:number]).count(arm)
        if times:
            shape = SHAPES[(SHAPES.index(look.shape) + times) % len(SHAPES)]
            look = look._replace(mark=spare(f"{' '.join(arm)} {times}", taken), shape=shape)
        elif look.mark in SPARE:
            look = look._replace(mark=spare(" ".join(arm), taken))
        taken.add(look.mark)
        found.append(look)
    return found


def in_place(number: int) -> Look:
    """The look of the series of this number, from 0, in a chart of series that are not arms."""
    colour, rgb = COLOURS[number % len(COLOURS)]
    return Look(
        mark=MARKS[number % len(MARKS)],
        colour=colour,
        rgb=rgb,
        shape=SHAPES[number % len(SHAPES)],
        fill=FILLS[number // len(SHAPES) % len(FILLS)],
        dash=DASHES[number % len(DASHES)],
    )


def looks_in(given: Sequence[Look | None]) -> list[Look]:
    """The looks of the series of a chart: those given, or those of their places; no mark twice."""
    taken: set[str] = set()
    found = []
    for number, look in enumerate(given):
        own = in_place(number) if look is None else look
        if own.mark in taken:
            own = own._replace(mark=spare(str(number), taken))
        taken.add(own.mark)
        found.append(own)
    return found


def coloured(text: str, looks: Sequence[Look]) -> str:
    """The text of a terminal, with the marks that begin its lines in their colours."""
    colours = {look.mark: look.colour for look in looks}
    lines = []
    for line in text.split("\n"):
        if line[1:2] == " " and line[:1] in colours:
            line = f"\x1b[38;5;{colours[line[0]]}m{line[0]}\x1b[0m{line[1:]}"
        lines.append(line)
    return "\n".join(lines)
