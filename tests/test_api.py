"""The commands as Python functions: their example runs, and they give what `--json` prints."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from home import QUICK, ROOT, STREAM, cli, inside

from dsa_sandbox import api
from dsa_sandbox.errors import UserError
from dsa_sandbox.runs.files import without_nan

QUICK_VALUES = dict(text.split("=") for text in QUICK[1::2])


def example() -> str:
    """The indented lines of the module's docstring."""
    lines = (api.__doc__ or "").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("    "))
    last = max(n for n, line in enumerate(lines) if line.startswith("    "))
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def values(**more: object) -> dict[str, object]:
    """The settings of QUICK networks as numbers, and `more` with __ for the dot."""
    numbers = {key: float(v) if "." in v else int(v) for key, v in QUICK_VALUES.items()}
    return numbers | {key.replace("__", "."): value for key, value in more.items()}


def as_json(value: dict[str, Any]) -> dict[str, Any]:
    """The object as the command line prints it."""
    return json.loads(json.dumps({"schema": 1, **without_nan(value)}))


def test_the_example_has_ten_lines_and_stands_in_the_readme_too() -> None:
    assert len(example().splitlines()) == 10
    assert f"```python\n{example()}\n```" in (ROOT / "README.md").read_text("utf-8")


def test_the_example_runs_and_prints_only_its_own_lines(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / STREAM.name).write_bytes(STREAM.read_bytes())
    with inside(tmp_path):
        exec(compile(example(), "the example", "exec"), {})
    out, err = capfd.readouterr()
    assert err == ""
    sgd, acft, story = out.strip("\n").split("\n", 2)
    assert sgd.startswith("finetune-dsa-sgd-smoke-s0-")
    assert acft.startswith("finetune-dsa-acft-smoke-s0-")
    assert story.startswith("Once upon a time")


def test_the_module_imports_no_torch() -> None:
    code = "import sys; from dsa_sandbox import api; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ)


def test_python_and_the_command_line_make_the_same_runs_and_say_the_same(
    quick_home: Path, tmp_path: Path
) -> None:
    here = api.session(quick_home)
    home = ("--home", quick_home, "--json")
    base = api.pretrain(values(arch="dense"), here)
    typed = cli("pretrain", "--arch", "dense", *QUICK, *home)
    assert typed.value == as_json(base.as_object())
    built = api.build({**values(), "arch": "dense"}, here)
    assert built.run.name in base.run.manifest["parents"]
    given = api.make_tasks({}, here, bases=[base], tasks=STREAM)
    arm = api.finetune(
        {"strategy": "sgd", "finetune": {"max_steps": 1}}, here, base=base.run.name, tasks=given
    )
    assert arm.run.manifest["tasks"]["name"] == given.run.name
    limit = ("--set", "finetune.max_steps=1")
    tasks = ("--tasks", given.run.path)
    typed = cli("finetune", base.run.name, "--strategy", "sgd", *tasks, *limit, *home)
    assert typed.value == as_json(arm.as_object())
    assert cli("eval", *home).value == as_json(api.evaluate((), here))
    told = cli("generate", base.run.name, "--max-tokens", 4, *home)
    assert told.value == as_json(api.generate(base, here, max_tokens=4))
    with pytest.raises(UserError, match=r"^tasks.count=2: .+ has 10 tasks"):
        api.finetune({"tasks.count": 2}, here, base=base, tasks=given)
    made = api.export(base, tmp_path / "there", here)
    assert made["architecture"] == "LlamaForCausalLM"
    imported = api.import_folder(tmp_path / "there", session=here)
    assert imported.as_object()["command"] == "import"
    assert imported.figures["parameters"] == made["parameters"]


def test_settings_are_those_of_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "own.toml"
    config.write_text("[train]\nsteps = 7\nlog_every = 3\n", "utf-8")
    found = api.settings({"train.steps": 5, "strategy": "ewc+acft"}, config=config)
    assert found["settings"]["train.steps"] == 5
    assert found["sources"]["train.steps"] == "the call"
    assert found["settings"]["train.log_every"] == 3
    assert found["settings"]["strategy"] == "acft+ewc"
    assert cli("settings", "--json").value == as_json(api.settings())


def test_a_mistake_raises_a_user_error_that_names_key_value_and_source(tmp_path: Path) -> None:
    here = api.session(tmp_path / "home")
    with pytest.raises(UserError, match=r"^train.stepz: .+train.steps\?  \[from the call\]$"):
        api.pretrain({"train.stepz": 3}, here)
    with pytest.raises(UserError, match=r"^arch: sparse: no such architecture"):
        api.build({"arch": "sparse"}, here)
    with pytest.raises(UserError, match=r"^no pre-trained run in"):
        api.finetune({"strategy": "sgd"}, here)
    with pytest.raises(UserError, match=r"^nothing: no such run"):
        api.generate("nothing", here)
    assert not (tmp_path / "home").exists()
