"""What a child process takes from its parent, and what it must not take from the folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from home import QUICK, ROOT

from dsa_sandbox import children


def test_a_cell_of_a_study_runs_nothing_that_lies_in_the_folder(
    traps: Path, quick_home: Path
) -> None:
    arguments = ["build", "--arch", "dense", *QUICK, "--home", str(quick_home)]
    child = children.start([str(part) for part in arguments])
    out, err = child.communicate(timeout=120)
    assert child.returncode == 0, err
    assert children.path_of(out).parent == quick_home
    assert not traps.exists()


def test_a_child_runs_the_very_package_of_its_parent(traps: Path, tmp_path: Path) -> None:
    """A copy that is not installed, found by PYTHONPATH, though another is installed."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "dsa_sandbox", copy / "dsa_sandbox")
    (copy / "dsa_sandbox" / "asks.py").write_text(
        "def main():\n    import dsa_sandbox, sys\n    print(dsa_sandbox.__file__, sys.path[0])\n"
    )
    code = "import sys; from dsa_sandbox import children; import subprocess\n"
    code += "command = children.command(['x'], 'asks')\n"
    code += "print(subprocess.run(command, capture_output=True, text=True, check=True).stdout)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(copy)},
    )
    package, first = done.stdout.split()
    assert Path(package) == copy / "dsa_sandbox" / "__init__.py"
    assert first == str(copy)  # by PYTHONPATH, and by nothing else
    assert not traps.exists()


def test_a_child_hears_what_its_parent_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", ["error::UserWarning"])
    told = {"NO_COLOR": "1", "COLUMNS": "77", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert "-Werror::UserWarning" in children.command([])
    environment = children.environment(3)
    assert told.items() <= environment.items()
    assert environment["OMP_NUM_THREADS"] == "3"
    assert environment["PYTHONIOENCODING"].startswith("utf-8")


@pytest.mark.parametrize(("locale", "encoding"), [("C.UTF-8", None), ("C", "cp1252")])
def test_a_study_works_in_a_home_of_any_name_under_any_locale(
    locale: str, encoding: str | None, quick_home: Path
) -> None:
    """A cell says where its run is; bytes that are no text in this locale arrive as they are."""
    home = quick_home.parent / "h\u00f6me \u2603"
    quick_home.rename(home)
    environment = os.environ | {"LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment.pop("PYTHONIOENCODING", None)
    if encoding:
        environment["PYTHONIOENCODING"] = encoding
    code = "import sys; from dsa_sandbox import children\n"
    code += "child = children.start(sys.argv[1:])\n"
    code += "out, err = child.communicate()\n"
    code += "assert child.returncode == 0, err\n"
    code += "assert (children.path_of(out) / 'manifest.json').exists(), out\n"
    arguments = ["build", "--arch", "dense", *QUICK, "--home", home]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")


def test_the_state_of_the_checkout_is_not_that_of_a_hooks_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dsa_sandbox.runs import provenance

    plain = provenance.git_state.__wrapped__()
    subprocess.run(["git", "init", "-q", str(tmp_path / "other")], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    assert provenance.git_state.__wrapped__() == plain
