"""Pages that are made from the code say what the code says."""

import importlib.util
import re
import tomllib
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


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "strategies.md", "studies.md"])
def test_a_page_is_as_the_code_would_write_it(name: str, generate: ModuleType) -> None:
    page: Path = ROOT / "docs" / name
    assert page.read_text("utf-8") == generate.PAGES[name](), "run: make docs"


def test_the_screens_are_those_of_the_commands_and_that_of_run_comes_last(
    generate: ModuleType,
) -> None:
    text = (ROOT / "docs" / "screens.md").read_text("utf-8")
    screens = generate.screens_page()
    assert text.startswith(screens), "run: make docs"
    rest = text.removeprefix(screens)
    assert rest == (f"\n{generate.run_section(None)}" if rest else "")
    assert all(len(line) <= 100 for line in screens.splitlines())


def test_a_home_without_the_study_is_refused_and_the_default_one_may_lack_it(
    generate: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="holds no finished study; make one with: make demo"):
        generate.demo_home([str(tmp_path)])


def test_changelog_citation_and_package_name_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    releases = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    version, date = releases[0]
    assert version == project["version"]
    assert f"\nversion: {version}\ndate-released: {date}\n" in citation
