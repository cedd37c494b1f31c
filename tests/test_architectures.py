"""Architectures: what is known of those that are built in, and those that a file adds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from home import BRIEF, QUICK, ROOT, STREAM, TinyHome, cli, forget
from safetensors import safe_open
from tiny import CONTEXT, some_tokens, tiny_settings

from dsa_sandbox import machine, sizes
from dsa_sandbox.config.resolve import preset_names, resolve
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.decoding.generate import Decoder
from dsa_sandbox.registry import archs
from dsa_sandbox.runs import load
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.selection import backends
from dsa_sandbox.sizes import group_of
from dsa_sandbox.study import grid

LINEAR = ROOT / "examples" / "linear_attention.py"
INCLUDE = ("--include", LINEAR, "--arch", "linear")

# total parameters and feed-forward widths, as they were when the identities of runs were fixed
SIZES = {
    "smoke": ((721_536, 724_096, 724_096, 728_448), (240, 208, 208, 216)),
    "mini": ((7_269_632, 7_276_928, 7_276_928, 7_277_696), (1008, 1024, 1024, 992)),
    "small": ((23_910_912, 23_875_968, 23_875_968, 23_852_928), (1456, 1536, 1536, 1448)),
    "base": ((95_171_328, 95_200_000, 95_200_000, 95_252_224), (3456, 3584, 3584, 3448)),
}

pytestmark = pytest.mark.usefixtures("forget_includes")


def saved_groups(run: Path) -> dict[str, int]:
    """Numbers in the weights of a run, by group, and their total."""
    groups: dict[str, int] = {}
    with safe_open(run / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118
            if name.endswith("feedforward.bias"):
                continue  # a buffer: what balances experts is no parameter
            group = group_of(name)
            groups[group] = groups.get(group, 0) + file.get_tensor(name).numel()
    return groups | {"total": sum(groups.values())}


def included(folder: Path, name: str, body: str) -> Path:
    """A file that registers the architecture `name`."""
    path = folder / f"{name}.py"
    path.write_text(
        "import torch\n"
        "from torch import nn\n"
        "from dsa_sandbox.core.attention import DenseAttention, DsaAttention, linear\n"
        "from dsa_sandbox.registry import archs\n" + body,
        "utf-8",
    )
    return path


def pretrained(home: Path, *arguments: object) -> Path:
    return cli("pretrain", *arguments, "--allow-mismatch", *QUICK, "--home", home).run


# sizes


@pytest.mark.parametrize("preset", preset_names())
def test_sizes_of_built_in_architectures_are_what_they_were(preset: str) -> None:
    settings = resolve(preset=preset).settings
    vocabulary = settings.data.vocabulary if settings.data.tokenizer == "bpe" else 700
    totals = [sizes.table(arch, settings.model, vocabulary)["total"] for arch in archs.builtin]
    widths = [sizes.matched_ffn_width(arch, settings.model) for arch in archs.builtin]
    assert (tuple(totals), tuple(widths)) == SIZES[preset]


@pytest.mark.parametrize("arch", archs.builtin)
@pytest.mark.parametrize("preset", preset_names())
def test_arithmetic_and_counting_agree_of_built_in_architectures(preset: str, arch: str) -> None:
    for compression in ("latent", "block") if arch in ("dsa", "dsa-full") else ("latent",):
        options = {"arch": (arch, "--arch"), "model.compression": (compression, "--set")}
        model = resolve(preset=preset, options=options).settings.model
        assert sizes.counted_attention(arch, model) == sizes.ATTENTION[arch](model)
        assert archs.about(arch).has_indexer == ("indexer" in sizes.ATTENTION[arch](model))


def test_the_table_of_an_included_architecture_is_that_of_its_file(quick_home: Path) -> None:
    experts = ("--set", "model.ffn=moe", "--set", "model.num_experts=4")
    for plan in ((), ("--set", "model.matched=false"), experts):
        more = (*INCLUDE, "--allow-mismatch", *QUICK, *plan, "--home", quick_home)
        run = cli("build", *more).run
        table = json.loads((run / "manifest.json").read_text("utf-8"))["figures"]["parameters"]
        assert {"address", "content"} < table["linear"].keys()
        assert not {"compressed", "selected", "indexer"} & table["linear"].keys()
        assert table["linear"] == saved_groups(run)
        dry = cli("build", "--dry-run", "--json", *more).value
        vocabulary = table["linear"]["embedding"] // 32
        assert dry["parameters"] - table["linear"]["total"] == 32 * (dry["vocabulary"] - vocabulary)


def test_an_included_architecture_is_matched_to_dsa_or_refused(
    quick_home: Path, tmp_path: Path
) -> None:
    model = tiny_settings(width=64, num_layers=4, ffn_width=512)
    assert cli("ls", "archs", "--include", LINEAR).code == 0
    linear, dsa = (sizes.table(arch, model, 700)["total"] for arch in ("linear", "dsa"))
    assert abs(linear - dsa) / dsa < 0.01
    body = (
        "@archs.register('huge')\n"
        "class Huge(nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.huge = linear(model.width, 64 * model.width)\n"
    )
    huge = ("--include", included(tmp_path, "huge", body), "--arch", "huge", *QUICK)
    problem = cli("build", *huge, "--home", quick_home).problem
    assert problem.startswith("error: model: huge and dsa differ by ")
    assert [path.name for path in quick_home.iterdir()] == ["cache"]


def test_a_norm_of_an_attention_counts_to_the_norms(tmp_path: Path) -> None:
    body = (
        "@archs.register('normed')\n"
        "class Normed(nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.norm, self.gain = nn.RMSNorm(model.width), nn.Parameter(torch.ones(3))\n"
    )
    assert cli("ls", "--include", included(tmp_path, "normed", body)).code == 0
    model = tiny_settings()
    width = sizes.matched_ffn_width("normed", model)
    network = Transformer("normed", model, 31, width, 0)
    counted: dict[str, int] = {}
    for name, parameter in network.named_parameters():
        counted[group_of(name)] = counted.get(group_of(name), 0) + parameter.numel()
    assert sizes.group_sizes("normed", model, 31, width) == counted


# an indexer, and networks without one


def test_no_command_teaches_an_indexer_to_an_included_architecture_without_one(
    quick_home: Path, tmp_path: Path
) -> None:
    base, home = pretrained(quick_home, *INCLUDE), ("--home", quick_home)
    names = sorted(path.name for path in quick_home.iterdir())
    asked = ("--set", "finetune.indexer=rewarm")
    problem = cli("finetune", base, "--tasks", STREAM, *asked, *home).problem
    told = "the base (linear) has no indexer; use finetune.indexer=frozen"
    assert problem == f"error: finetune.indexer=rewarm: {told}"
    told = "linear has no indexer to train"
    assert told in cli("pretrain", *INCLUDE, "--set", "train.indexer_clip=0.5", *QUICK).problem
    grid = ("run", "--archs", "linear", "--include", LINEAR, "--dry-run", *home)
    assert "the base (linear) has no indexer" in cli(*grid, *asked).problem
    assert told in cli(*grid, "--set", "train.indexer_clip=0.5").problem
    problem = cli("eval", base, "--selection", "window", *home).problem
    assert problem.endswith(f"{base.name} is linear, which selects no keys")
    problem = cli("plot", base, "--kind", "indexer", *home).problem
    assert problem == f"error: {base.name}: linear has no indexer; name a run of dsa"
    assert sorted(path.name for path in quick_home.iterdir()) == names


def test_a_study_tells_what_is_for_an_indexer_only_to_those_that_have_one(tmp_path: Path) -> None:
    body = (
        "@archs.register('shifted')\n"
        "def shifted(model):\n"
        "    '''dsa with another K.'''\n"
        "    return DsaAttention(model.model_copy(update={'num_kept': 4}))\n"
    )
    path = included(tmp_path, "shifted", body)
    networks = ["dense", "linear", "shifted", "dsa"]
    files = ("--include", LINEAR, "--include", path)
    assert cli("ls", *files).code == 0
    sets = ["train.indexer_clip=0.5", "finetune.indexer=rewarm"]
    resolved = resolve(sets=sets)
    settings = resolved.settings
    grid.check_study(resolved, networks, tmp_path)
    plan = grid.plan(
        settings, tmp_path, archs=networks, strategies=["sgd"], preset=None, config=None,
        sets=sets, include=[], data=None, device=None, count=None, seed=None, jobs=1,
    )  # fmt: skip
    told = [arch for arch in networks if "train.indexer_clip=0.5" in plan.base_options(arch)]
    assert told == ["shifted", "dsa"]
    arms = [arch for arch in networks if "finetune.indexer=rewarm" in plan.arm_options(arch, "sgd")]
    assert arms == ["shifted", "dsa"]
    rows = cli("ls", "archs", "--json", *files).value["rows"]
    assert rows[-1] == {"arch": "shifted", "what": "dsa with another K."}
    # its layers are of a form that the kernels know
    long = settings.model_copy(update={"arch": "shifted"})
    by_gather = long.machine.model_copy(update={"attention": "gather"})
    asked = long.model_copy(update={"machine": by_gather})
    engine = machine.resolve(asked.machine, asked.preset)
    assert backends.engine_for(asked, engine).attention == "gather"
    linear = asked.model_copy(update={"arch": "linear"})
    assert backends.engine_for(linear, engine).attention == "masked"


def test_an_architecture_that_says_wrongly_whether_it_has_an_indexer_is_refused(
    tmp_path: Path, quick_home: Path
) -> None:
    for name, said, base in (("boast", True, "Dense"), ("modest", False, "Dsa")):
        body = f"archs.register('{name}', has_indexer={said})({base}Attention)\n"
        path = included(tmp_path, name, body)
        more = ("--include", path, "--arch", name, "--allow-mismatch", *QUICK)
        problem = cli("build", *more, "--home", quick_home).problem
        assert f"arch={name}: registered with has_indexer={said}, but its layers" in problem
    assert [path.name for path in quick_home.iterdir()] == ["cache"]


# runs of an included architecture


def test_finetune_looks_for_a_base_of_an_architecture_that_it_includes(tmp_path: Path) -> None:
    problem = cli("finetune", *INCLUDE, "--home", tmp_path / "home").problem
    assert problem.endswith("run first: dsa-sandbox pretrain --arch linear")


def test_stories_figures_and_charts_of_an_included_architecture_need_no_include(
    quick_home: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.py"
    own.write_bytes(LINEAR.read_bytes())
    home = ("--home", quick_home)
    base = pretrained(quick_home, "--include", own, "--arch", "linear")
    quick = ("--tasks", STREAM, "--strategy", "sgd", "--set", "finetune.max_steps=1", *BRIEF)
    quick += ("--quiet", *home)
    arm = cli("finetune", base, "--include", own, *quick).run
    for command in (
        ("generate", base, "--max-tokens", "3"),
        ("generate", arm, "--max-tokens", "3"),
        ("eval", base),
        ("eval", arm),
        ("plot", arm),
    ):
        forget()
        answer = cli(*command, *home)
        assert answer.code == 0, (command, answer.err)
    forget()
    assert cli("finetune", base, *quick).run == arm  # as if it had been included
    forget()
    problem = cli("export", base, "--to", tmp_path / "there", *home).problem
    assert problem.startswith("error: export: no layout for linear; there is one for dense, ")
    assert not (tmp_path / "there").exists()
    forget()
    own.write_text(own.read_text("utf-8") + "# changed\n", "utf-8")
    expected = f"error: {base.name}: its architecture, linear, is not built in: {own} has changed"
    for command in (("generate", base), ("eval", base), ("export", base, "--to", "there")):
        problem = cli(*command, *home).problem
        assert problem.startswith(expected), problem
        assert "pass --include FILE" in problem
    assert cli("generate", base, "--max-tokens", "3", "--include", own, *home).code == 0
    forget()
    own.unlink()
    assert f"{own} cannot be read" in cli("generate", base, *home).problem
    assert cli("make-tasks", "--dry-run", "--preset", "smoke", *home).problem.count("\n") == 0


def test_two_versions_of_an_architecture_are_not_taken_for_one_another(
    quick_home: Path, tmp_path: Path
) -> None:
    runs = []
    for number in (1, 2):
        own = tmp_path / f"own{number}.py"
        own.write_text(f"{LINEAR.read_text('utf-8')}# {number}\n", "utf-8")
        runs.append(pretrained(quick_home, "--include", own, "--arch", "linear"))
        forget()
    assert runs[0] != runs[1]
    problem = cli("eval", *runs, "--home", quick_home).problem
    assert f"{runs[1].name}: its architecture, linear, is of another file than" in problem


def test_a_base_whose_file_is_gone_spoils_no_other(tiny_home: TinyHome, tmp_path: Path) -> None:
    base = Run(tiny_home.run("pretrain dsa"))
    folder = tmp_path / "home" / "pretrain-lost"
    folder.mkdir(parents=True)
    lost = base.manifest | {"arch": "lost", "includes": {"gone.py": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps(lost), "utf-8")
    text = (base.path / "settings.toml").read_text("utf-8")
    (folder / "settings.toml").write_text(text.replace('arch = "dsa"', 'arch = "lost"'), "utf-8")
    saved = load.SavedNetwork(base)
    assert load.block_of(tmp_path / "home", saved) == [saved]


def test_an_arm_of_an_included_strategy_is_read_without_its_file(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    body = (
        "from dsa_sandbox.registry import strategies\n"
        "from dsa_sandbox.strategies.sgd import Sequential\n"
        "strategies.register('mine')(type('Mine', (Sequential,), {}))\n"
    )
    own, home = included(tmp_path, "mine", body), ("--home", tmp_path / "home")
    tasks = ("--tasks", tiny_home.run("make-tasks") / "tasks.jsonl")
    quick = ("--set", "finetune.max_steps=1", *BRIEF, "--quiet", *home)
    base = tiny_home.run("pretrain dsa")
    more = ("--strategy", "mine", "--include", own, *tasks, *quick)
    arm = cli("finetune", base, *more, "--config", tiny_home.config).run
    own.unlink()
    forget()
    assert cli("generate", arm, "--max-tokens", "3", *home).code == 0
    assert cli("export", arm, "--to", tmp_path / "there", *home).code == 0


def test_vectors_of_an_included_architecture_are_born_alike(tmp_path: Path) -> None:
    body = (
        "@archs.register('biased')\n"
        "class Biased(nn.Module):\n"
        "    def __init__(self, model):\n"
        "        super().__init__()\n"
        "        self.o = nn.Linear(model.width, model.width)\n"
        "    def forward(self, x, table, sparse=True, train_indexer=False):\n"
        "        return self.o(x), None\n"
    )
    assert cli("ls", "--include", included(tmp_path, "biased", body)).code == 0
    settings = resolve(options={"arch": ("biased", "--arch")}).settings
    state = torch.get_rng_state()
    first, second = (load.new_model(settings, 31).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_with_attention_of_its_own_is_decoded_as_it_is(tmp_path: Path) -> None:
    body = (
        "@archs.register('mean')\n"
        "class Mean(DenseAttention):\n"
        "    def forward(self, x, table, sparse=True, train_indexer=False):\n"
        "        return x.cumsum(1), None\n"
        "@archs.register('mean-dsa')\n"
        "class MeanDsa(DsaAttention):\n"
        "    def forward(self, x, table, sparse=True, train_indexer=False):\n"
        "        return x.cumsum(1), None\n"
    )
    assert cli("ls", "--include", included(tmp_path, "mean", body)).code == 0
    for arch in ("mean", "mean-dsa"):
        model = Transformer(arch, tiny_settings(), 31, 48, 0).eval()
        tokens_BT, decoder = some_tokens(), Decoder(model)
        pieces = [decoder.feed(tokens_BT[:, :5]), decoder.feed(tokens_BT[:, 5:CONTEXT])]
        torch.testing.assert_close(torch.cat(pieces, 1), model(tokens_BT))


# names


def test_a_built_in_name_cannot_be_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = included(tmp_path, "taken", "archs.register('dense')(type('Dense', (nn.Module,), {}))\n")
    monkeypatch.delitem(archs.entries, "dense")  # as if no network had been made yet
    problem = cli("ls", "archs", "--include", path).problem
    assert "architecture dense is registered twice" in problem


def test_what_is_known_of_architectures_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from dsa_sandbox.cli.main import run_app\n"
        "from dsa_sandbox import sizes\n"
        "from dsa_sandbox.config.resolve import resolve\n"
        "for arguments in (['--help'], ['pretrain', '--help'], ['ls', 'archs'],\n"
        "                  ['pretrain', '--arch', 'dens'], ['settings', '--strategy', 'sgdd']):\n"
        "    run_app(arguments)\n"
        "model = resolve().settings.model\n"
        "print([sizes.has_indexer(a, model) for a in ('dense', 'dsa', 'dsa-full', 'dsa-v32')])\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[False, True, True, True]"
    assert "did you mean dense?" in done.stderr
    for about in (archs.about(name) for name in archs.builtin):
        assert about.sentence in " ".join(done.stdout.split()), about
