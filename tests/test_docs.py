"""Pages that are made from the code say what the code says."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from home import ROOT


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["commands.md", "settings.md"])
def test_a_page_is_as_the_code_would_write_it(name: str, generate: ModuleType) -> None:
    page: Path = ROOT / "docs" / name
    assert page.read_text("utf-8") == generate.PAGES[name](), "run: make docs"
