"""Folders of transformers, and what becomes of them here."""

import json
from pathlib import Path
from typing import Any

import torch
from home import cli
from tiny import CONTEXT, VOCABULARY, some_tokens
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.runs import load
from dsa_sandbox.runs.folder import Run


def tokenizer_of(num_tokens: int = VOCABULARY, end: int = 0, begin: int | None = None) -> Tokenizer:
    """Words w0, w1, ..; the one with the id `end` is </s>, which ends a text, `begin` is <s>."""
    words = {f"w{number}": number for number in range(num_tokens)}
    special = {"</s>": end} | ({} if begin is None else {"<s>": begin})
    for number in special.values():
        del words[f"w{number}"]
    tokenizer = Tokenizer(models.WordLevel({**words, **special}, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def brought(folder: Path, *options: object, notes: str = "") -> Transformer:
    """The network of a folder, imported into a home beside it."""
    answer = cli("import", folder, "--home", folder.parent / "home", *options)
    assert notes in answer.err
    return load.SavedNetwork(Run(answer.run)).network().eval()


def refused(folder: Path, *options: object) -> str:
    """Why a folder is not imported; nothing is left behind."""
    home = folder.parent / "refusing"
    problem = cli("import", folder, "--home", home, *options).problem
    assert not home.exists()
    return problem


def llama(
    folder: Path, *, shard: str = "1GB", end: int = 2, begin: int | None = None, **sizes: Any
) -> Any:
    """A Llama of transformers, with random weights and its own tokenizer, in a folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    defaults: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 52,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": end if begin is None else begin,
        "eos_token_id": end,
    }
    model = LlamaForCausalLM(LlamaConfig(**{**defaults, **sizes})).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:  # not all ones: which is which would not matter
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        else:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer_of(end=end, begin=begin).save(str(folder / "tokenizer.json"))
    return model


def exchanged(x: Tensor, end: int, dim: int = -1) -> Tensor:
    """Rows 0 and `end` of an axis in each other's place."""
    order = torch.arange(x.shape[dim])
    order[[0, end]] = order[[end, 0]]
    return x.index_select(dim, order)


def same_text(tokens_BT: Tensor, end: int) -> Tensor:
    """The ids here of tokens there."""
    return exchanged(torch.arange(VOCABULARY), end)[tokens_BT]


def says_the_same(
    ours: Transformer, theirs: torch.nn.Module, end: int = 0, atol: float = 1e-4
) -> None:
    tokens_BT = some_tokens(3, CONTEXT, seed=9)
    with torch.no_grad():
        logits_BTV = exchanged(ours(same_text(tokens_BT, end)), end)
        torch.testing.assert_close(logits_BTV, theirs(tokens_BT).logits, rtol=0, atol=atol)


def config_of(folder: Path, **changes: Any) -> None:
    """Change config.json; `None` takes a key away."""
    path = folder / "config.json"
    value = {**json.loads(path.read_text("utf-8")), **changes}
    kept = {key: entry for key, entry in value.items() if entry is not None}
    path.write_text(json.dumps(kept), "utf-8")
