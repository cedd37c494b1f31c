"""What a run takes from its parents is theirs, by hash: tokenizer, packed text, held-out stories.

One base of text in TinyStories' file format; everything else is tried on copies of its home.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from home import BRIEF, QUICK, STREAM, cli, inside

from dsa_sandbox.data import grammar
from dsa_sandbox.runs import load
from dsa_sandbox.runs.folder import Run

BIGGER = ("data.vocabulary=1500", "model.context=160")
SMALL = [*QUICK, *(part for text in BIGGER for part in ("--set", text))]
ARM = ("--set", "finetune.max_steps=1", *BRIEF)


def write(folder: Path, first: int) -> None:
    """90 stories to train on and 6 that are held out, from the grammar's story `first` on."""
    folder.mkdir(parents=True)
    for part, numbers in (("train", range(90)), ("valid", range(90, 96))):
        stories = [grammar.story(7, first + number, 90) for number in numbers]
        text = "".join(f"{story}\n<|endoftext|>\n" for story in stories)
        (folder / f"{part}.txt").write_text(text, "utf-8")


class Place(NamedTuple):
    """A folder with stories in `text`, and the base that was made of them there."""

    folder: Path
    base: str

    @property
    def home(self) -> Path:
        return self.folder / "runs"

    def arm(self, *arguments: Any, cwd: Path | None = None) -> Run:
        """A finished arm on the base, started in some folder."""
        with inside(cwd or self.folder):
            answer = cli(
                *("finetune", self.home / self.base, "--tasks", STREAM, "--strategy", "sgd"),
                *("--home", self.home, *ARM, *arguments),
            )
        assert answer.code == 0, answer.err
        return Run(Path(answer.out.strip()))

    def forget_packed(self) -> None:
        shutil.rmtree(self.home / "cache")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("original")
    write(folder / "text", 0)
    with inside(folder):
        answer = cli("pretrain", "--arch", "dense", "--data", "text", *SMALL)
    assert answer.code == 0, answer.err
    return Place(folder, Path(answer.out.strip()).name)


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    shutil.copytree(original.folder, tmp_path / "place")
    there = tmp_path / "place"
    # as if it had been made here: a manifest says where the text lay
    for manifest in there.glob("runs/*/manifest.json"):
        text = manifest.read_text("utf-8").replace(str(original.folder), str(there))
        manifest.write_text(text, "utf-8")
    return Place(there, original.base)


def base_nll(run: Run) -> float:
    """Held-out loss of row 0, nats."""
    row = next(row for row in run.rows("metrics.jsonl") if row.get("row") == 0)
    return float(row["base_nll"])


def figures(run: Run) -> tuple[bytes, bytes]:
    return tuple((run.path / name).read_bytes() for name in ("records.jsonl", "metrics.jsonl"))  # type: ignore[return-value]


def test_an_arm_of_another_seed_reads_by_the_tokenizer_and_the_text_of_its_base(
    place: Place,
) -> None:
    first, second = place.arm(), place.arm("--seed", "1")
    assert first.path != second.path
    assert base_nll(first) == base_nll(second)
    tokenizers = [(run.path / "tokenizer.json").read_bytes() for run in (first, second)]
    assert (
        tokenizers[0] == tokenizers[1] == (place.home / place.base / "tokenizer.json").read_bytes()
    )
    assert len(list((place.home / "cache").glob("tokens-*/done.json"))) == 1


def test_a_relative_path_is_not_found_again_from_elsewhere(place: Place, tmp_path: Path) -> None:
    """In the other folder, too, there is a `text`: another one."""
    expected = place.arm()
    write(tmp_path / "elsewhere" / "text", 500)
    (tmp_path / "second").mkdir()
    for number, forgetting in enumerate((False, True)):
        if forgetting:
            place.forget_packed()
        shutil.rmtree(expected.path, ignore_errors=True)
        run = place.arm(cwd=tmp_path / "elsewhere")
        assert run.path == expected.path
        if number == 0:
            kept = figures(run)
        assert figures(run) == kept


def test_text_that_is_gone_is_served_from_the_cache(place: Place) -> None:
    expected = figures(place.arm())
    shutil.rmtree(place.folder / "text")
    for run in place.home.glob("finetune-*"):
        shutil.rmtree(run)
    assert figures(place.arm()) == expected


def test_text_that_is_nowhere_is_one_line(place: Place) -> None:
    shutil.rmtree(place.folder / "text")
    place.forget_packed()
    wanted = Run(place.home / place.base).manifest["data_hash"][:16]
    for command in (
        ("finetune", place.base, "--tasks", STREAM, "--strategy", "sgd", *ARM),
        ("eval", place.base),
    ):
        problem = cli(*command, "--home", place.home).problem
        assert f"data.source={place.folder / 'text'}: no such file or folder" in problem
        assert f"{place.base} was made with text {wanted}" in problem
        assert "name its place by --data" in problem
    assert not list(place.home.glob("finetune-*"))


def test_other_text_at_the_old_place_is_one_line_with_both_hashes(place: Place) -> None:
    wanted = Run(place.home / place.base).manifest["data_hash"][:16]
    shutil.rmtree(place.folder / "text")
    write(place.folder / "text", 300)
    place.forget_packed()
    with inside(place.folder):
        found = cli("build", "--data", "text", "--arch", "dense", "--json", *SMALL)
        other = Run(Path(json.loads(found.out)["run"])).manifest["data_hash"][:16]
    problem = cli("eval", place.base, "--home", place.home).problem
    assert f"text {other}; {place.base} was made with text {wanted}" in problem


def test_the_same_text_at_another_place_is_accepted(place: Place, tmp_path: Path) -> None:
    expected = figures(place.arm())
    for run in place.home.glob("finetune-*"):
        shutil.rmtree(run)
    (place.folder / "text").rename(tmp_path / "moved")
    place.forget_packed()
    moved = ("--data", tmp_path / "moved")
    assert figures(place.arm(*moved)) == expected
    quality = cli("eval", place.base, "--home", place.home, "--json").out
    place.forget_packed()
    assert cli("eval", place.base, *moved, "--home", place.home, "--json").out == quality
    with inside(tmp_path):
        again = cli("pretrain", "--arch", "dense", *moved, "--home", place.home, *SMALL)
    assert Path(again.out.strip()) == place.home / place.base
    assert "already exists" in again.err


def test_a_place_that_is_named_must_hold_the_text_of_the_base(place: Place, tmp_path: Path) -> None:
    """Though it is packed: an option is never passed over."""
    write(tmp_path / "other", 300)
    for command in (
        ("finetune", place.base, "--tasks", STREAM, "--strategy", "sgd"),
        ("eval", place.base),
        ("make-tasks", place.base, "--set", f"data.source={tmp_path / 'other'}"),
    ):
        data = () if command[0] == "make-tasks" else ("--data", tmp_path / "other")
        problem = cli(*command, *data, "--home", place.home).problem
        assert f"{place.base} was made with text" in problem
    problem = cli("eval", place.base, "--data", tmp_path / "no", "--home", place.home).problem
    assert "no such file or folder" in problem


def test_text_rewritten_with_its_old_time_is_another_base(place: Place) -> None:
    """Between `build` and `pretrain`, which builds once more."""
    file = place.folder / "text" / "train.txt"
    stamp = file.stat().st_mtime
    with inside(place.folder):
        built = cli("build", "--arch", "dsa", "--data", "text", *SMALL).out.strip()
        before = Run(Path(built)).manifest["data_hash"]
        file.write_text(file.read_text("utf-8").replace("Tom", "Kim"), "utf-8")
        os.utime(file, (stamp, stamp))
        trained = cli("pretrain", "--arch", "dsa", "--data", "text", *SMALL).out.strip()
        after = Run(Path(trained)).manifest
    assert after["data_hash"] != before
    assert built.rpartition("-")[2] not in "".join(after["parents"])


def test_arms_are_told_apart_by_what_their_bases_are(tiny_home: Any, tmp_path: Path) -> None:
    """Two imports of one network: their weights are the same, their contexts are not."""
    base = tiny_home.run("pretrain dense")
    assert cli("export", base, "--to", tmp_path / "there").code == 0
    runs = [
        cli("import", tmp_path / "there", "--context", context, "--home", tmp_path / "home").out
        for context in ("104", "100")
    ]
    first, second = (load.SavedNetwork(Run(Path(run.strip()))) for run in runs)
    assert first.sha256 == second.sha256
    assert load.identities([first]) != load.identities([second])
