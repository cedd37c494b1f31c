"""Every setting has one name, one value, and somebody who set it."""

import json
from pathlib import Path

import pytest
from home import cli
from pydantic import BaseModel

from dsa_sandbox.config import resolve as resolving
from dsa_sandbox.config import settings
from dsa_sandbox.config.resolve import as_flat, resolve
from dsa_sandbox.errors import UserError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DSA_SANDBOX_HOME", raising=False)


def told(*arguments: object) -> str:
    return cli("settings", *arguments).problem


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "my.toml"
    path.write_text(text, "utf-8")
    return path


# unknown names


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("train.stepz", "train.steps"),
        ("model.num_head", "model.num_heads"),
        ("modl.width", "model.width"),
        ("data.sorce", "data.source"),
        ("machine.device_name", "machine.device"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_setting_names_the_nearest_and_its_source(
    key: str, nearest: str, tmp_path: Path
) -> None:
    expected = f"error: {key}: no such setting; did you mean {nearest}?  [from "
    assert told("--set", f"{key}=3") == f"{expected}--set]"
    section, dot, field = key.rpartition(".")
    path = config(tmp_path, f"[{section}]\n{field} = 3\n" if dot else f"{field} = 3\n")
    assert told("--config", path) == f"{expected}{path}]"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--preset", "smok"], "smok: no such preset; did you mean smoke?"),
        (["--arch", "dnse"], "arch: dnse: no such architecture; did you mean dense?"),
        (["--strategy", "ewv"], "strategy: ewv: no such strategy; did you mean ewc?"),
    ],
)
def test_an_unknown_value_names_the_nearest_and_its_source(
    arguments: list[str], expected: str
) -> None:
    problem = told(*arguments)
    assert expected in problem
    if arguments[0] != "--preset":
        assert problem.endswith(f"[from {arguments[0]}]")


def test_the_source_of_a_preset_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "did you mean smoke?" in told("--set", "preset=smok")
    assert "did you mean mini?" in told("--config", config(tmp_path, 'preset = "minni"'))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.steps=many", ["train.steps=many"]),
        ("train.steps=0", ["train.steps=0", "greater than or equal to 1"]),
        ("train.steps=1.5", ["train.steps=1.5"]),
        ("train.learning_rate=nan", ["train.learning_rate"]),
        ("data.tokenizer=letters", ["data.tokenizer=letters", "words", "bpe"]),
        ("machine.compile=perhaps", ["machine.compile=perhaps"]),
        ("seed=-1", ["seed=-1"]),
        ("model.width=[1, 2]", ["model.width"]),
        ("tasks.count=51", ["tasks.count=51", "50"]),
        ("finetune.optimizer=adam", ["finetune.optimizer=adam", "adamw"]),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_its_source(text: str, words: list[str]) -> None:
    problem = told("--set", text)
    assert problem.endswith("[from --set]")
    assert all(word in problem for word in words), problem
    assert len(problem.splitlines()) == 1


@pytest.mark.parametrize("text", ["train.steps", "=3", "train.steps:3"])
def test_a_set_without_key_or_value_says_how_to_write_it(text: str) -> None:
    assert "write it as section.key=value" in told("--set", text)


def test_a_setting_that_does_not_fit_the_architecture_is_named_with_its_source() -> None:
    narrow = ("--set", "model.indexer_head_width=4")
    problem = told("--arch", "dsa-v32", *narrow)
    assert problem.startswith("error: model.indexer_head_width=4 is less than the 16 dimensions")
    assert problem.endswith("[from --set]")
    assert cli("settings", "--arch", "dsa", *narrow).code == 0


def test_an_architecture_may_have_defaults_of_its_own() -> None:
    def forced(*arguments: str) -> tuple[int, int]:
        values = cli("settings", *arguments, "--json").value["settings"]
        return values["model.force_sink"], values["model.force_local"]

    assert forced("--arch", "dsa") == (1, 2)
    assert forced("--arch", "dsa-v32") == forced("--set", "arch=dsa-v32") == (0, 0)
    assert forced("--arch", "dsa-v32", "--set", "model.force_sink=3") == (3, 0)


def test_every_problem_is_told_at_once() -> None:
    problem = told("--set", "train.stepz=1", "--set", "model.widht=2", "--set", "sgdd.x=1")
    assert len(problem.splitlines()) == 3


def test_another_strategys_section_is_an_error(tmp_path: Path) -> None:
    problem = told("--strategy", "sgd", "--set", "ewc.strength=3")
    assert problem == (
        "error: ewc.strength: belongs to --strategy ewc, but the strategy is sgd  [from --set]"
    )


def test_a_file_may_hold_the_sections_of_all_arms_of_a_study(tmp_path: Path) -> None:
    path = config(tmp_path, "[ewc]\nstrength = 3\n[acft]\nrate = 4\n")
    for strategy, own, other in (("acft", "rate = 4", "[ewc]"), ("ewc", "strength = 3", "[acft]")):
        shown = cli("settings", "--strategy", strategy, "--config", path).out
        assert own in shown
        assert other not in shown
    home = ("--home", tmp_path / "home")
    shown = cli("run", "--strategies", "sgd,ewc,acft", "--config", path, "--dry-run", *home).out
    assert "dsa ewc" in shown


def test_a_strategys_own_section_is_checked() -> None:
    problem = told("--strategy", "ewc", "--set", "ewc.strenght=3")
    assert "did you mean ewc.strength?  [from --set]" in problem
    assert "ewc.passes=0" in told("--strategy", "ewc", "--set", "ewc.passes=0")


@pytest.mark.parametrize("text", ["acft.nonsense=3", "acft.rate=-1"])
def test_a_strategys_section_is_checked_where_no_strategy_is_used(
    text: str, tmp_path: Path
) -> None:
    assert "acft" in cli("build", "--dry-run", "--home", tmp_path, "--set", text).problem


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("DSA_SANDBOX_DEVISE", "DEVICE"), ("DSA_SANDBOX_HOMME", "HOME"), ("DSA_SANDBOX_SEED", "")],
)
def test_an_environment_variable_of_no_setting_is_an_error(
    name: str, nearest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    problem = told()
    assert f"{name}: no such environment setting" in problem
    assert "[from the environment]" in problem
    if nearest:
        assert f"did you mean DSA_SANDBOX_{nearest}?" in problem


# rules between settings


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["model.num_heads=7"], ["num_heads=7 does not divide width=128"]),
        (["model.num_kept=129"], ["num_kept=129 is larger than context=128"]),
        (["model.force_sink=10", "model.force_local=10"], ["exceed num_kept=16"]),
        (["model.num_selected_heads=4"], ["no head of num_heads=4 to the compressed flow"]),
        (["train.warmup_fraction=0.6"], ["warmup_fraction=0.6", "decay_fraction=0.5", "overlap"]),
        (["train.dense_fraction=0.97"], ["leave no step to the sparse phase"]),
        (["model.width=40"], ["multiple of 4"]),
        (["data.tokenizer=words", "data.source=x.txt"], ["tokenizer=words", "bpe"]),
        (["tasks.stream=development"], ["24 tasks"]),
    ],
)
def test_settings_that_do_not_fit_each_other_are_named_with_their_source(
    sets: list[str], words: list[str]
) -> None:
    problem = told(*[part for text in sets for part in ("--set", text)])
    assert all(word in problem for word in words), problem
    assert problem.endswith("[from --set]") or "--set" in problem.split("[from ")[1]


def test_rules_hold_for_files_too(tmp_path: Path) -> None:
    path = config(tmp_path, "[model]\nnum_heads = 7\n")
    problem = told("--config", path)
    assert "num_heads=7 does not divide width=128" in problem
    assert str(path) in problem


# files


@pytest.mark.parametrize("text", ["[model", "a = ", "x = 1\nx = 2", "steps = 1 2"])
def test_a_toml_that_does_not_parse_is_named(text: str, tmp_path: Path) -> None:
    path = config(tmp_path, text)
    problem = told("--config", path)
    assert f"{path}: not valid TOML: " in problem
    assert "(at " in problem  # line and column, or the end
    assert problem.endswith("[from --config]")
    assert len(problem.splitlines()) == 1


def test_a_config_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path / 'no.toml'}: no such file" in told("--config", tmp_path / "no.toml")
    assert f"{tmp_path}: a folder" in told("--config", tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"preset = '\xe9'")
    assert "latin.toml: cannot be read" in told("--config", tmp_path / "latin.toml")


# precedence


def test_each_layer_beats_the_one_below_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def value(*arguments: object) -> tuple[object, str]:
        answer = cli("settings", "--json", *arguments).value
        return answer["settings"][key], answer["sources"][key]

    key = "machine.micro_tokens"
    path = config(tmp_path, "[machine]\nmicro_tokens = 3\n[train]\nsteps = 4\n")
    assert value() == (16_384, "default")
    layers: list[object] = ["--preset", "base"]
    assert value(*layers) == (65_536, "preset base")
    layers += ["--config", path]
    assert value(*layers) == (3, str(path))
    monkeypatch.setenv("DSA_SANDBOX_MICRO_TOKENS", "5")
    assert value(*layers) == (5, "environment")
    layers += ["--set", f"{key}=6"]
    assert value(*layers) == (6, "--set")
    key = "train.steps"
    assert value(*layers) == (4, str(path))
    assert value(*layers, "--set", "train.steps=7") == (7, "--set")
    key = "seed"
    assert value("--set", "seed=1", "--seed", "2") == (2, "--seed")


def test_a_preset_may_stand_in_the_file_and_the_option_beats_it(tmp_path: Path) -> None:
    path = config(tmp_path, 'preset = "mini"\n[model]\nnum_layers = 1\n')
    answer = cli("settings", "--json", "--config", path).value
    assert (answer["settings"]["preset"], answer["sources"]["preset"]) == ("mini", str(path))
    assert answer["sources"]["model.width"] == "preset mini"
    assert answer["settings"]["model.num_layers"] == 1
    answer = cli("settings", "--json", "--config", path, "--preset", "small").value
    assert answer["settings"]["model.width"] == 512
    assert answer["settings"]["model.num_layers"] == 1


def test_the_environment_sets_the_machine_and_never_science(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSA_SANDBOX_DEVICE", "cpu")
    monkeypatch.setenv("DSA_SANDBOX_COMPILE", "true")
    resolved = resolve()
    assert resolved.settings.machine.device == "cpu"
    assert resolved.settings.machine.compile is True
    assert resolved.sources["machine.device"] == "environment"
    monkeypatch.setenv("DSA_SANDBOX_STEPS", "3")
    with pytest.raises(UserError, match="DSA_SANDBOX_STEPS"):
        resolve()


def test_the_home_is_the_option_then_the_environment_then_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def home(*arguments: object) -> object:
        return cli("build", "--dry-run", "--json", *arguments).value["home"]

    assert home() == "runs"
    monkeypatch.setenv("DSA_SANDBOX_HOME", str(tmp_path / "a"))
    assert home() == str(tmp_path / "a")
    assert home("--home", tmp_path / "b") == str(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.learning_rate=1e-2", 0.01),
        ("train.steps=1_000", 1000),
        ("machine.compile=true", True),
        ("machine.device=cuda:1", "cuda:1"),
        ("data.source='a b.txt'", "a b.txt"),
        ("data.source=stories/a=b.txt", "stories/a=b.txt"),
        ('data.source="schöne \\"Wörter\\".txt"', 'schöne "Wörter".txt'),
        ("model.force_sink= 0", 0),
    ],
)
def test_set_takes_toml_values_and_bare_words(text: str, expected: object) -> None:
    resolved = resolve(sets=[text])
    value = as_flat(resolved.settings)[text.split("=")[0]]
    assert value == expected
    assert type(value) is type(expected)


# round trip


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--preset", "base", "--arch", "dense", "--seed", "7"],
        ["--preset", "mini", "--strategy", "ewc+acft", "--arch", "dsa-v32"],
        ["--set", "model.ffn=moe", "--set", "model.num_experts=4"],
        ["--strategy", "ewc", "--set", "ewc.strength=1e-3", "--count", "3"],
        ["--data", 'a "b" \\ ä.txt', "--set", "machine.compile=true", "--set", "train.clip=0.1"],
    ],
)
def test_what_settings_prints_is_taken_back_and_gives_the_same(
    arguments: list[str], tmp_path: Path
) -> None:
    printed = cli("settings", *arguments)
    path = config(tmp_path, printed.out)
    again = cli("settings", "--config", path).out
    values = [
        [line.rpartition(" # ")[0].rstrip() for line in text.splitlines()]  # but who set it
        for text in (printed.out, again)
    ]
    assert values[0] == values[1]
    assert again == cli("settings", "--config", path).out
    first, second = (
        cli("settings", "--json", *rest).value["settings"]
        for rest in (arguments, ["--config", str(path)])
    )
    assert first == second


def test_settings_show_the_strategy_that_nobody_named_too() -> None:
    printed = cli("settings").out
    assert 'strategy = "acft"' in printed
    assert "\n[acft]\n" in printed
    assert set(cli("settings", "--json").value["settings"]) == set(
        cli("settings", "--strategy", "acft", "--json").value["settings"]
    )


def test_settings_say_who_set_each_value() -> None:
    lines = cli("settings", "--set", "train.steps=5", "--seed", "3").out.splitlines()
    assert next(line for line in lines if line.startswith("steps = 5")).endswith("# --set")
    assert next(line for line in lines if line.startswith("seed = 3")).endswith("# --seed")
    assert next(line for line in lines if line.startswith("width")).endswith("# preset smoke")
    assert next(line for line in lines if line.startswith("clip")).endswith("# default")


def test_what_a_settings_file_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match=r"train\.clip=inf: input should be a finite"):
        resolve(sets=["train.clip=inf"])


def test_a_run_saves_its_resolved_settings(tmp_path: Path) -> None:
    resolved = resolve(preset="mini", sets=["train.steps=3"]).settings
    text = resolving.as_toml(resolved)
    assert "#" not in text
    assert resolving.from_toml(text) == resolved


def test_a_base_of_version_0_2_is_read_without_the_settings_that_are_gone() -> None:
    text = 'arch = "dense"\nseed = 4\n[finetune]\nmargin = 1.0\nindexer_learning_rate = 0.001\n'
    text += 'stop = "learned"\nindexer = "kl"\nbatch = 8\n'
    found = resolving.from_toml(text)
    assert (found.arch, found.seed, found.finetune.batch) == ("dense", 4, 8)
    assert found.finetune.stop == "level"
    with pytest.raises(UserError, match=r"finetune\.margn: no such setting"):
        resolving.from_toml(text.replace("margin", "margn"))


def test_every_setting_has_a_description() -> None:
    sections: tuple[type[BaseModel], ...] = (*settings.SECTIONS.values(), settings.Settings)
    for section in sections:
        for name, field in section.model_fields.items():
            assert field.description or name in (*settings.SECTIONS, "chosen"), name


def test_every_setting_is_described_and_the_description_comes_back_as_settings(
    tmp_path: Path,
) -> None:
    plain = cli("settings", "--preset", "mini", "--strategy", "ewc").out
    described = cli("settings", "--preset", "mini", "--strategy", "ewc", "--describe").out
    lines = described.splitlines()
    values = [line for line in lines if line and line[0] not in "#["]
    assert [line for line in plain.splitlines() if line and line[0] != "["] == values
    for number, line in enumerate(lines):
        if line in values:
            assert lines[number - 1].startswith("# "), line
        assert len(line) <= 100
    (tmp_path / "a.toml").write_text(described, "utf-8")
    again = cli("settings", "--config", tmp_path / "a.toml").out
    assert [line.partition(" #")[0].rstrip() for line in again.splitlines()] == [
        line.partition(" #")[0].rstrip() for line in plain.splitlines()
    ]


@pytest.mark.parametrize("name", ["a\x7fb.txt", 'a"b.txt', "a\\b.txt", "Grüße\t.txt", "a'b.txt"])
def test_any_name_of_a_text_comes_back_from_printed_settings(name: str, tmp_path: Path) -> None:
    printed = cli("settings", "--data", name).out
    (tmp_path / "a.toml").write_text(printed, "utf-8")
    again = json.loads(cli("settings", "--config", tmp_path / "a.toml", "--json").out)
    assert again["settings"]["data.source"] == name
