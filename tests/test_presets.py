"""A preset is what its table says, and its two networks match."""

from pathlib import Path

import pytest
from home import cli
from test_settings import clean_environment  # noqa: F401

from dsa_sandbox import sizes
from dsa_sandbox.config import resolve as resolving
from dsa_sandbox.config.resolve import resolve

PRESETS = {
    "smoke": (0.72e6, 4, 128, 4, 208, 128, 16),
    "mini": (7e6, 6, 256, 8, 1024, 256, 32),
    "small": (25e6, 6, 512, 8, 1536, 512, 64),
    "base": (100e6, 8, 768, 12, 3584, 512, 64),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_table_says_and_its_networks_match(name: str) -> None:
    about, *expected = PRESETS[name]
    resolved = resolve(preset=name).settings
    model = resolved.model
    found = [
        *(model.num_layers, model.width, model.num_heads, model.ffn_width),
        *(model.context, model.num_kept),
    ]
    assert found == expected
    assert model.num_selected_heads == model.num_heads // 2
    assert model.latent_rank == model.width // 2
    assert (model.force_sink, model.force_local) == (1, model.num_kept // 8)
    vocabulary = resolved.data.vocabulary if resolved.data.tokenizer == "bpe" else 700
    assert sizes.table("dsa", model, vocabulary)["total"] == pytest.approx(about, rel=0.2)
    assert sizes.mismatch(model, vocabulary) < 0.01


def test_presets_are_listed_smallest_first_with_their_sizes() -> None:
    rows = cli("ls", "presets", "--json").value["rows"]
    assert [row["preset"] for row in rows] == list(PRESETS) == resolving.preset_names()
    sizes_in_millions = [float(row["parameters"].removesuffix("M")) for row in rows]
    assert sizes_in_millions == sorted(sizes_in_millions)


def test_smoke_is_the_default() -> None:
    assert resolve().settings == resolve(preset="smoke").settings


UNEQUAL = [
    part
    for text in (
        *("model.width=64", "model.num_heads=4", "model.latent_rank=4", "model.num_layers=1"),
        *("model.ffn_width=8", "model.indexer_heads=1", "model.indexer_head_width=4"),
        *("model.context=104", "model.num_kept=12", "data.num_stories=60"),
        "data.num_validation=4",
    )
    for part in ("--set", text)
]


def test_networks_that_differ_too_much_are_refused_unless_allowed(quick_home: Path) -> None:
    plan = cli("build", "--dry-run", "--json", *UNEQUAL).value
    assert plan["mismatch"] > 0.01
    before = sorted(quick_home.rglob("*"))
    for command in ("build", "pretrain"):
        problem = cli(command, "--home", quick_home, *UNEQUAL).problem
        assert "differ by" in problem
        assert "--allow-mismatch" in problem
    assert sorted(quick_home.rglob("*")) == before
    assert cli("build", "--home", quick_home, "--allow-mismatch", *UNEQUAL).run.is_dir()


def test_networks_that_differ_too_much_leave_no_folder_behind(tmp_path: Path) -> None:
    assert "differ by" in cli("build", "--home", tmp_path / "home", *UNEQUAL).problem
    assert not list(tmp_path.iterdir())
