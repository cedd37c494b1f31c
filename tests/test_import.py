"""Imported networks give the same logits as in transformers; unsupported folders are refused."""

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from home import BRIEF, STREAM, TINY_EWC, TinyHome, cli
from imported import (
    brought,
    config_of,
    llama,
    refused,
    says_the_same,
    tokenizer_of,
)
from safetensors.torch import load_file, save_file
from test_export import MIXTURE, MODEL, network, no_code_in_the_users_cache, there  # noqa: F401
from tiny import CONTEXT, VOCABULARY, some_tokens
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from dsa_sandbox.config.settings import Settings
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import corpus, tokens
from dsa_sandbox.data.opening import opener_of
from dsa_sandbox.evaluation import base_quality, scoring, story_quality
from dsa_sandbox.interop import from_transformers, hf_config, to_transformers
from dsa_sandbox.interop import tokenizer as vocabulary
from dsa_sandbox.runs import load, saved
from dsa_sandbox.runs.folder import Run
from dsa_sandbox.runs.session import Session

UNTIED = MODEL.model_copy(update={"tied": False, "rope_base": 5e5, "num_selected_heads": 3})


@pytest.mark.parametrize("plan", [MODEL, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-full", "dsa-v32"])
def test_an_export_is_imported_bit_by_bit(arch: str, plan: Any, tmp_path: Path) -> None:
    model = network(arch, trained=False, plan=plan)
    resolved, tokenizer = Settings(arch=arch, model=plan), tokenizer_of()
    to_transformers.write(tmp_path / "there", model, resolved, tokenizer)
    back = brought(tmp_path / "there")
    state = back.state_dict()
    for name, tensor in model.state_dict().items():
        if name == "embedding.weight" and not plan.tied and arch in ("dense", "dsa-v32"):
            # there it is multiplied by sqrt(width), and divided again here
            torch.testing.assert_close(state.pop(name), tensor, rtol=1e-6, atol=0)
        else:
            assert torch.equal(state.pop(name), tensor), name
    assert not state
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    torch.testing.assert_close(back(tokens_BT), model(tokens_BT), rtol=0, atol=1e-5)
    (run,) = (tmp_path / "home").glob("import-*")
    assert load.SavedNetwork(Run(run)).tokenizer.to_str() == tokenizer.to_str()
    own = saved.run_settings(Run(run))
    assert own.arch == arch
    assert own.model.num_kept == plan.num_kept
    assert own.model.num_selected_heads == plan.num_selected_heads


def test_experts_exported_by_us_or_by_transformers_are_imported(tmp_path: Path) -> None:
    model = network("dsa-v32", trained=True, plan=MIXTURE)
    other = there("dsa-v32", model, tmp_path / "there", MIXTURE)
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    other.save_pretrained(tmp_path / "again")
    tokenizer_of().save(str(tmp_path / "again" / "tokenizer.json"))
    tokenizer_of().save(str(tmp_path / "there" / "tokenizer.json"))
    for folder in ("there", "again"):
        back = brought(tmp_path / folder)
        torch.testing.assert_close(back(tokens_BT), model(tokens_BT), rtol=0, atol=1e-4)
        assert torch.equal(*(one.get_buffer("blocks.0.feedforward.bias") for one in (back, model)))
    config_of(tmp_path / "there", n_group=2)
    assert "n_group=2 is not supported, only 1" in refused(tmp_path / "there")
    config_of(tmp_path / "there", n_group=1, moe_intermediate_size=12)
    assert "moe_intermediate_size=12 must be a multiple of 8" in refused(tmp_path / "there")


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
@pytest.mark.parametrize("arch", ["dense", "dsa", "dsa-v32"])
def test_an_export_that_transformers_saves_again_is_imported_bit_by_bit(
    arch: str, trained: bool, tmp_path: Path
) -> None:
    model = network(arch, trained=trained)
    other = there(arch, model, tmp_path / "there")
    other.save_pretrained(tmp_path / "again")
    tokenizer_of().save(str(tmp_path / "again" / "tokenizer.json"))
    back = brought(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    says_the_same(back, other)


def test_a_tokenizer_that_transformers_saves_again_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = tokens.bpe_tokenizer(["Tom had a red ball."] * 50, 400)
    plan = Settings(arch="dense", model=MODEL)
    model = Transformer("dense", MODEL, tokenizer.get_vocab_size(), 48, seed=0)
    to_transformers.write(tmp_path / "there", model, plan, tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "there")
    again("Tom had a ball", truncation=True, max_length=3, padding="max_length")
    again.save_pretrained(tmp_path / "there")
    assert '"truncation": {' in (tmp_path / "there" / "tokenizer.json").read_text("utf-8")
    brought(tmp_path / "there")
    (run,) = (tmp_path / "home").glob("import-*")
    assert load.SavedNetwork(Run(run)).tokenizer.to_str() == tokenizer.to_str()


@pytest.mark.parametrize("end", [0, 2])
@pytest.mark.parametrize("num_shared", [1, 2, 4])
def test_an_imported_llama_gives_equal_logits(num_shared: int, end: int, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_key_value_heads": num_shared, "rms_norm_eps": 1e-3}
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", end=end, rope_parameters=rope, **sizes)
    ours = brought(tmp_path / "llama")
    says_the_same(ours, theirs, end)


def test_an_imported_llama_can_be_exported_again(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = llama(tmp_path / "llama", num_key_value_heads=2)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    assert cli("export", run, "--to", tmp_path / "again", "--home", home).code == 0
    card = (tmp_path / "again" / "README.md").read_text("utf-8")
    assert "imported from llama (LlamaForCausalLM)" in card
    assert "license" not in card  # it is not ours to give
    says_the_same(brought(tmp_path / "again"), theirs, end=2)
    ours = load.SavedNetwork(Run(run)).network()
    says_the_same(ours, AutoModelForCausalLM.from_pretrained(tmp_path / "again"))


def test_a_tied_embedding_becomes_two_matrices(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tmp_path / "llama" / "model.safetensors")
    ours = brought(tmp_path / "llama", notes="becomes two")
    assert not saved.run_settings(Run(next((tmp_path / "home").glob("import-*")))).model.tied
    says_the_same(ours, theirs, end=2)


def test_shards_are_read(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", shard="20KB")
    assert len(list((tmp_path / "llama").glob("model-*.safetensors"))) > 1
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_half_precision_weights_are_read_exactly(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    llama(tmp_path / "llama").bfloat16().save_pretrained(tmp_path / "llama")
    assert load_file(tmp_path / "llama" / "model.safetensors")["lm_head.weight"].itemsize == 2
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_older_spellings_of_the_rotary_base_are_read(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", rope_parameters=rope)
    config_of(tmp_path / "llama", rope_parameters=None, rope_theta=5e5, rope_scaling=None)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_rows_beyond_the_tokenizer_are_kept(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    tokenizer_of(VOCABULARY - 3, end=2).save(str(tmp_path / "llama" / "tokenizer.json"))
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def trained_on_letters(kind: str) -> Tokenizer:
    """A tokenizer of each kind, with <s> before </s> among its first ids."""
    special = ["<unk>", "<s>", "</s>"]
    if kind == "unigram":
        pieces = [(piece, -2.0) for piece in (*special, *"abcde", " ")]
        return Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    own = [] if kind == "added" else special
    trainer = trainers.BpeTrainer(vocab_size=20, special_tokens=own, show_progress=False)
    tokenizer.train_from_iterator(["abc abd ab abcde"] * 9, trainer)
    if kind == "added":  # as in Llama 3: not in the model's vocabulary, but behind it
        tokenizer.add_special_tokens(special)
    return tokenizer


@pytest.mark.parametrize("kind", ["bpe", "added", "unigram"])
def test_the_end_of_text_token_gets_id_0(kind: str) -> None:
    before = trained_on_letters(kind)
    end = before.token_to_id("</s>")
    assert end
    before.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(n, before.token_to_id(n)) for n in ("<s>", "</s>")]
    )
    after = vocabulary.exchange_end(before, end, Path("tokenizer.json"))
    assert after.token_to_id("</s>") == 0
    text = "abcd ab</s>abz"  # z is unknown
    bare = before.encode(text, add_special_tokens=False).ids
    assert end in bare
    assert after.encode(text).ids == [vocabulary.exchanged(number, end) for number in bare]
    assert after.decode(after.encode("abd abcde").ids) == before.decode(
        before.encode("abd abcde", add_special_tokens=False).ids
    )
    assert after.get_vocab_size() == before.get_vocab_size()


def test_generation_ends_at_the_end_of_text_token_of_the_folder(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    with torch.no_grad():
        weight = theirs.get_parameter("lm_head.weight")
        weight.copy_(torch.zeros_like(weight))
        weight[2] = 1e-3  # the two ends of the stream's axis: </s>, or w0 where it points back
        weight[0] = -1e-3
    theirs.save_pretrained(tmp_path / "llama")
    home = tmp_path / "home"
    answer = cli("import", tmp_path / "llama", "--home", home)
    assert "'w0' and '</s>' exchange their ids" in answer.err
    assert answer.run.name.startswith("import-dense-smoke-s0-")
    assert "'w0'" in json.loads((answer.run / "manifest.json").read_text())["imported"]["notes"][0]
    value = cli(
        "generate", answer.run, "--prompt", "w5 w6", "--temperature", "0", "--home", home, "--json"
    ).value
    inputs = torch.tensor([[2, 5, 6]])
    said = theirs.generate(inputs, max_new_tokens=CONTEXT - 3, do_sample=False)[0, 1:]
    words = [f"w{number}" for number in said.tolist() if number != 2]
    assert value["stories"] == [" ".join(words)]


def test_the_identity_of_an_import_depends_on_the_contents_of_the_folder(tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    shutil.copytree(tmp_path / "llama", tmp_path / "copy")
    home = tmp_path / "home"
    first = cli("import", tmp_path / "llama", "--home", home, "--json").value
    assert cli("import", tmp_path / "copy", "--home", home).run == Path(first["run"])
    weights = load_file(tmp_path / "copy" / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, tmp_path / "copy" / "model.safetensors")
    assert cli("import", tmp_path / "copy", "--home", home).run != Path(first["run"])
    assert first["architecture"] == "LlamaForCausalLM"
    assert first["vocabulary"] == VOCABULARY
    assert "import-dense" in cli("ls", "runs", "--home", home).out


def test_the_context_is_at_most_that_of_the_folder(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama", max_position_embeddings=100_000)
    ours = brought(tmp_path / "llama", notes="context 2048 of 100000")
    assert ours.context == 2048
    says_the_same(ours, theirs, end=2)
    assert brought(tmp_path / "llama", "--context", 40).context == 40
    assert brought(tmp_path / "llama", "--set", "model.context=2500").context == 2500
    problem = refused(tmp_path / "llama", "--context", 100_001)
    assert "has positions up to 100000  [from --context]" in problem


def test_the_end_of_text_token_may_come_from_tokenizer_config(tmp_path: Path) -> None:
    theirs = llama(tmp_path / "llama")
    config_of(tmp_path / "llama", eos_token_id=None)
    beside = tmp_path / "llama" / "tokenizer_config.json"
    beside.write_text(json.dumps({"eos_token": {"content": "</s>"}}), "utf-8")
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_text_is_packed_with_the_imported_tokenizer(tmp_path: Path) -> None:
    tokenizer = tokens.bpe_tokenizer(["Tom had a red ball."] * 50, 400)
    resolved = Settings()
    few = resolved.data.model_copy(update={"num_stories": 20, "num_validation": 5})
    resolved = resolved.model_copy(update={"data": few})
    source = corpus.resolve(few)
    text = tokens.prepare(source, few, 0, resolved.model.context, tmp_path, tokenizer=tokenizer)
    own = tokens.prepare(source, few, 0, resolved.model.context, tmp_path)
    assert text.digest != own.digest
    assert text.tokenizer.to_str() == tokenizer.to_str()
    told = [packed.tokenizer.decode(packed.train.document(3).tolist()) for packed in (text, own)]
    assert told[0] == told[1]
    again = tokens.prepare(source, few, 0, resolved.model.context, tmp_path, tokenizer=tokenizer)
    assert again.folder == text.folder


def test_fine_tuning_an_imported_base_equals_fine_tuning_the_original(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    base, home = tiny_home.run("pretrain dense"), tmp_path / "home"
    assert cli("export", base, "--to", tmp_path / "there").code == 0
    lines = tiny_home.config.read_text("utf-8").splitlines()
    data = lines[lines.index("[data]") : lines.index("[train]")]
    (tmp_path / "data.toml").write_text("\n".join(data), "utf-8")
    config = ("--config", tmp_path / "data.toml")
    run = cli("import", tmp_path / "there", *config, "--home", home).run
    quick = (*BRIEF, "--set", "finetune.max_steps=6", "--set", "finetune.check_every=3")
    made, arms, measured = [], [], []
    for number, one in enumerate((base, run)):
        place = ("--home", tmp_path / f"home-{number}")
        made.append(cli("make-tasks", one, "--count", 2, *place).run)
        said = cli("finetune", one, "--strategy", "ewc", *quick, *TINY_EWC, *place)
        assert f"tasks: {made[-1].name} (the newest made with this base)" in said.err
        arms.append(said.run)
        (figures,) = cli("eval", one, *place, "--json").value["runs"].values()
        measured.append(figures)
    for name, kind in (("tasks.jsonl", made), ("records.jsonl", arms), ("model.safetensors", arms)):
        was, is_ = ((folder / name).read_bytes() for folder in kind)
        assert was == is_, name
    assert made[0].name != made[1].name
    assert measured[0] == measured[1]
    assert measured[0]["known_facts"] > 20
    assert cli("export", arms[1], "--to", tmp_path / "arm").code == 0
    card = (tmp_path / "arm" / "README.md").read_text("utf-8")
    assert "imported from there (LlamaForCausalLM) and fine-tuned with ewc" in card


def test_the_text_of_an_imported_base_is_part_of_the_identity_of_an_arm(
    tiny_home: TinyHome, tmp_path: Path
) -> None:
    base, home = tiny_home.run("pretrain dense"), tmp_path / "home"
    assert cli("export", base, "--to", tmp_path / "there").code == 0
    place = ("--home", home, "--set", "data.num_stories=60")
    runs = [
        cli("import", tmp_path / "there", *place, "--set", f"data.num_validation={number}").run
        for number in (8, 9)
    ]
    digests = {Run(run).manifest["files"]["model.safetensors"] for run in runs}
    assert len(digests) == 1
    few = ("--set", "finetune.max_steps=1", *BRIEF, "--tasks", STREAM)
    arms = {cli("finetune", run, "--strategy", "sgd", *few, "--home", home).run for run in runs}
    assert len(arms) == 2


def test_a_base_without_words_for_the_facts_is_refused_by_make_tasks(tmp_path: Path) -> None:
    llama(tmp_path / "llama", max_position_embeddings=200)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    answer = cli("make-tasks", run, "--home", home)
    assert answer.code == 3
    assert "the bases know 0 facts" in answer.err
    assert "Traceback" not in answer.err
    few = ("--set", "data.num_stories=20", "--set", "data.num_validation=4")
    run = cli("import", tmp_path / "llama", "--home", home, *few).run
    assert "CLOSED" in cli("eval", run, "--home", home).out


def texts_of(folder: Path) -> tuple[Path, list[str]]:
    """Held-out texts of words that the tokenizer has, and the folder that they are in."""
    rng = random.Random(3)
    texts = [
        " ".join(f"w{rng.randrange(3, VOCABULARY)}" for _ in range(rng.randrange(4, 20)))
        for _ in range(40)
    ]
    folder.mkdir()
    for part, some in (("train", texts[20:]), ("valid", texts[:20])):
        (folder / f"{part}.txt").write_text("<|endoftext|>".join(some), "utf-8")
    return folder, texts[:20]


@torch.no_grad()
def nll_there(model: torch.nn.Module, rows: list[list[int]]) -> float:
    """NLL in nats per target, by the loss of transformers."""
    lost = [model(torch.tensor([row]), labels=torch.tensor([row])).loss.item() for row in rows]
    sizes = [len(row) - 1 for row in rows]
    return sum(nats * size for nats, size in zip(lost, sizes)) / sum(sizes)


@pytest.mark.parametrize(("begin", "end"), [(1, 2), (0, 2), (1, 0)])
def test_documents_begin_with_the_opener_of_the_folder(
    begin: int, end: int, tmp_path: Path
) -> None:
    theirs, home = llama(tmp_path / "llama", begin=begin, end=end), tmp_path / "home"
    data, texts = texts_of(tmp_path / "texts")
    there = tokenizer_of(end=end, begin=begin)
    rows = [[begin, *there.encode(text).ids, end] for text in texts]
    wrong = nll_there(theirs, [[end, *row[1:]] for row in rows])
    right = nll_there(theirs, rows)
    assert abs(wrong - right) > 0.01  # what this test is about

    answer = cli("import", tmp_path / "llama", "--data", data, "--home", home)
    assert "a text is opened by '<s>' and ended by '</s>'" in answer.err
    saved = load.SavedNetwork(Run(answer.run))
    model, tokenizer = saved.network().eval(), saved.tokenizer
    text = saved.text(Session(home))
    assert base_quality.text_quality(model, text.valid)["nll"] == pytest.approx(right, abs=1e-4)
    documents = scoring.batch_rows(texts, tokenizer)
    nats, count = scoring.heldout_nll(model, documents)
    assert nats / count == pytest.approx(right, abs=1e-4)

    opener = opener_of(tokenizer)
    assert opener == tokenizer.token_to_id("<s>") != tokenizer.token_to_id("</s>")
    packed = [text.valid.document(number).tolist() for number in range(len(texts))]
    assert sorted(packed) == sorted(document.tolist() for document in documents)
    for document in packed:  # it opens each of them, and is never predicted
        assert document[0] == opener
        assert document[-1] == 0
        assert not {opener, 0} & set(document[1:-1])
    batch = tokens.batch_of(tokens.Batches(text.train, CONTEXT, 256, seed=0)[0])
    assert (batch.tokens_BT[:, 0] == opener).all()
    assert not (batch.targets_BT == opener).any()
    counts_V = np.ones(VOCABULARY)
    for number in range(text.train.num_documents):
        np.add.at(counts_V, text.train.document(number)[1:], 1)
    nats_V = -np.log(counts_V / counts_V.sum())
    expected = np.mean([nats_V[number] for document in packed for number in document[1:]])
    found = scoring.unigram_nll(text.train, tokens.heldout(text.valid, CONTEXT, 20), VOCABULARY)
    assert found == pytest.approx(expected)
    told = story_quality.tell(model, tokens.heldout(text.valid, CONTEXT, 20), 20, 0, opener)
    assert {story.prompt[0] for story in told} == {opener}

    inputs = torch.tensor([[begin, 5, 6]])
    said = theirs.generate(
        inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=9, do_sample=False
    )[0, 1:]
    value = cli(
        "generate", answer.run, "--prompt", "w5 w6", "--temperature", "0", "--max-tokens", 9,
        "--home", home, "--json",
    ).value  # fmt: skip
    assert value["stories"] == [there.decode(said.tolist())]


def test_an_opener_survives_export_and_import(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    llama(tmp_path / "llama", begin=1, end=2)
    home = tmp_path / "home"
    run = cli("import", tmp_path / "llama", "--home", home).run
    assert cli("export", run, "--to", tmp_path / "again", "--home", home).code == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    assert tokenizer("w5 w6")["input_ids"] == [1, 5, 6]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    for config in (model.config, model.generation_config):
        assert (config.bos_token_id, config.eos_token_id) == (1, 0)
    again = cli("import", tmp_path / "again", "--home", home).run
    one, other = (load.SavedNetwork(Run(path)).tokenizer.to_str() for path in (run, again))
    assert one == other
    weights = [load_file(path / "model.safetensors") for path in (run, again)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("changes", "opener"),
    [
        ({"bos_token_id": None}, "<s>"),  # named beside the tokenizer
        ({"bos_token_id": [4, 1]}, "w4"),
        ({"bos_token_id": 99}, "</s>"),  # no text has it
    ],
)
def test_the_opener_may_come_from_either_config_file(
    changes: dict[str, Any], opener: str, tmp_path: Path
) -> None:
    llama(tmp_path / "llama", begin=1, end=2)
    config_of(tmp_path / "llama", **changes)
    beside = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "llama" / "tokenizer_config.json").write_text(json.dumps(beside), "utf-8")
    run = cli("import", tmp_path / "llama", "--home", tmp_path / "home").run
    tokenizer = load.SavedNetwork(Run(run)).tokenizer
    assert tokenizer.id_to_token(opener_of(tokenizer)) == opener


def test_each_file_is_read_once_and_its_bytes_are_hashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process that writes into the folder meanwhile cannot give one file two contents."""
    llama(tmp_path / "llama", shard="20KB")
    (tmp_path / "llama" / "tokenizer_config.json").write_text("{}", "utf-8")
    read: dict[Path, list[bytes]] = {}
    before = Path.read_bytes

    def watched(path: Path) -> bytes:
        content = before(path)
        read.setdefault(path, []).append(content)
        return content

    monkeypatch.setattr(Path, "read_bytes", watched)
    folder = from_transformers.read_folder(tmp_path / "llama")
    monkeypatch.undo()
    found = {path.name: contents for path, contents in read.items()}
    assert found.keys() == folder.files.keys()
    assert {"config.json", "tokenizer.json", "tokenizer_config.json"} < found.keys()
    for name, (content,) in found.items():  # each is read once
        assert folder.files[name] == hashlib.sha256(content).hexdigest()
    # and nothing is read in another way: what was parsed is what those bytes say
    for path in (tmp_path / "llama").iterdir():
        path.write_bytes(b"")
    for name, contents in found.items():
        (tmp_path / "llama" / name).write_bytes(contents[0])
    again = from_transformers.read_folder(tmp_path / "llama")
    assert again.files == folder.files
    assert all(torch.equal(again.weights[name], w) for name, w in folder.weights.items())


OLD = {"rope_parameters": None, "rope_scaling": None}


@pytest.mark.parametrize(
    "changes",
    [
        {**OLD, "rope_theta": 5e5},
        {**OLD, "rope_theta": 500_000, "rope_scaling": {"type": "default"}},
        {"rope_theta": 5e5},  # both, and the same
        {**OLD, "rope_scaling": {"rope_type": "default", "rope_theta": 5e5}},
    ],
)
def test_each_spelling_of_the_rotary_base_is_read(changes: dict[str, Any], tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5e5}
    theirs = llama(tmp_path / "llama", rope_parameters=rope)
    config_of(tmp_path / "llama", **changes)
    says_the_same(brought(tmp_path / "llama"), theirs, end=2)


def test_a_missing_key_has_the_default_of_its_class(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, DeepseekV32Config, LlamaConfig

    for kind, name in (
        (LlamaConfig, hf_config.LLAMA),
        (DeepseekV32Config, hf_config.DEEPSEEK),
    ):
        own = kind().to_dict()
        for key, value in hf_config.DEFAULTS[name].items():
            assert own[key] == value, (name, key)
        assert own["rope_parameters"]["rope_theta"] == hf_config.ROPE_BASE
    sizes: dict[str, Any] = {"max_position_embeddings": 2048, "num_key_value_heads": 4}
    llama(tmp_path / "llama", **sizes)
    gone = ("rope_parameters", "num_key_value_heads", "head_dim")
    config_of(
        tmp_path / "llama",
        **dict.fromkeys((*gone, *hf_config.DEFAULTS[hf_config.LLAMA])),
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval()
    ours = brought(tmp_path / "llama")
    assert ours.context == 2048
    says_the_same(ours, theirs, end=2)


def test_missing_keys_of_a_mixture_have_the_defaults_of_its_class(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    plan = MIXTURE.model_copy(update={"routed_scale": 2.5, "num_shared_experts": 1})
    model = network("dsa-v32", trained=False, plan=plan)
    settings, folder = Settings(arch="dsa-v32", model=plan), tmp_path / "v32"
    to_transformers.write(folder, model, settings, tokenizer_of())
    config_of(folder, routed_scaling_factor=None, mlp_layer_types=None)  # 2.5, and first_k_dense..
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    says_the_same(brought(folder), theirs)
    config_of(folder, n_group=None, topk_group=None)
    assert "n_group=8 is not supported, only 1" in refused(folder)
    config_of(folder, n_group=1, topk_group=1, num_experts=7)
    assert "num_experts=7, but n_routed_experts=4" in refused(folder)
    config_of(folder, num_experts=None, first_k_dense_replace=1)  # of two layers
    assert "mlp_layer_types=dense and sparse layers" in refused(folder)
