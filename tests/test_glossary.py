"""docs/glossary.md explains words in order, by names that the tool has."""

import re

from home import ROOT

from dsa_sandbox import registry
from dsa_sandbox.cli.main import click_group
from dsa_sandbox.config import resolve
from dsa_sandbox.report.plots import KINDS, OF_BASES

TEXT = (ROOT / "docs" / "glossary.md").read_text("utf-8")
TERMS = re.findall(r"^\* \*\*(.+?)\*\*", TEXT, re.MULTILINE)
NAMES = [" ".join(name.split()) for name in re.findall(r"`([^`]+)`", TEXT)]
COMMANDS = click_group().commands


def test_terms_stand_in_the_order_of_the_alphabet_and_once() -> None:
    assert sorted(set(TERMS), key=str.lower) == TERMS


def test_settings_that_the_glossary_names_are_settings() -> None:
    keys = [*resolve.known_keys(), *(f"acft.{key}" for key in ("rate", "group", "moves"))]
    sections = {key.partition(".")[0] for key in keys}
    named = [name.partition("=")[0] for name in NAMES if name.partition(".")[0] in sections]
    named = [name for name in named if re.fullmatch(r"\w+\.[\w*]+", name)]
    assert len(named) > 10
    for name in named:
        found = [key for key in keys if re.fullmatch(name.replace("*", r"\w*"), key)]
        assert found or name == "tasks.jsonl", name


def test_options_of_commands_that_the_glossary_names_can_be_typed() -> None:
    options = {option for verb in COMMANDS.values() for one in verb.params for option in one.opts}
    for option in re.findall(r"--[a-z-]+", " ".join(NAMES)):
        assert option in options, option
    for kind in re.findall(r"--kind (\w+)", " ".join(NAMES)):
        assert kind in (*KINDS, *OF_BASES), kind
    for strategy in re.findall(r"--strategy (\S+)", " ".join(NAMES)):
        assert strategy in list(registry.strategies), strategy
