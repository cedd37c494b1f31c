"""The tokenizer of an imported folder, changed so that its end-of-text token has id 0 (END).

The token that opens a text in the folder opens each document here too (data.opening).
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from dsa_sandbox.data.opening import END_ID, record_opener
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.folders import Files


class ImportedTokenizer(NamedTuple):
    """The changed tokenizer, and the id that its end-of-text token had in the folder."""

    tokenizer: Tokenizer
    end: int
    notes: list[str]  # for the user: which ids were changed


def import_tokenizer(files: Files, config: dict[str, Any]) -> ImportedTokenizer:
    """The tokenizer of a folder; UserError if it is missing, or cannot be changed as needed."""
    path = files.folder / "tokenizer.json"
    tokenizer = read(files)
    tokenizer_config = files.json("tokenizer_config.json") or {}
    end = end_of(files.folder, config, tokenizer_config, tokenizer)
    names = {number: repr(token) for token, number in tokenizer.get_vocab().items()}
    begin = token_id(config.get("bos_token_id"), tokenizer_config.get("bos_token"), tokenizer)
    notes = []
    if begin not in list(names):  # not given, or not in the vocabulary
        begin = end
    if end != END_ID:
        both = f"{names.get(END_ID)} and {names[end]}"  # a missing id 0 is refused below
        notes.append(f"{both} exchange their ids: the end-of-text token has id 0 here")
    if begin != end:
        notes.append(f"a text is opened by {names[begin]} and ended by {names[end]}")
    tokenizer = fill_vocabulary(tokenizer, config["vocab_size"], path)
    tokenizer = exchange_end(tokenizer, end, path)
    record_opener(tokenizer, exchanged(int(begin), end))
    return ImportedTokenizer(tokenizer, end, notes)


def read(files: Files) -> Tokenizer:
    """The tokenizer of tokenizer.json; UserError if it is missing or cannot be parsed."""
    path = files.folder / "tokenizer.json"
    content = files.read("tokenizer.json")
    if content is None:
        other = files.folder / "tokenizer.model"
        if other.is_file():
            raise UserError(
                f"{other}: sentencepiece models are not supported; save it as tokenizer.json by "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise UserError(f"{path}: no such file")
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # tokenizers raises a bare Exception
        raise UserError(f"{path}: is not a tokenizer: {error}") from None


def token_id(configured: Any, token: Any, tokenizer: Tokenizer) -> Any:
    """The id in config.json (the first of several), else that of `token`; None if neither is given.

    `token` is an entry of tokenizer_config.json, a string or an object with `content`.
    """
    if isinstance(configured, list):
        configured = configured[0] if configured else None
    if configured is not None:
        return configured
    if isinstance(token, dict):
        token = token.get("content")
    return tokenizer.token_to_id(token) if isinstance(token, str) else None


def end_of(
    folder: Path, config: dict[str, Any], tokenizer_config: dict[str, Any], tokenizer: Tokenizer
) -> int:
    """The id of the end-of-text token; UserError if there is none."""
    path = folder / "config.json"
    end = token_id(config.get("eos_token_id"), tokenizer_config.get("eos_token"), tokenizer)
    if end is None:
        raise UserError(f"{path}: eos_token_id is missing; give the id of the end-of-text token")
    if end not in tokenizer.get_vocab().values():
        raise UserError(f"{path}: eos_token_id={end} is not in tokenizer.json")
    return int(end)


def fill_vocabulary(tokenizer: Tokenizer, vocabulary: int, path: Path) -> Tokenizer:
    """The tokenizer with unused tokens added, up to the number of rows of the embedding."""
    ids = sorted(tokenizer.get_vocab().values())
    if len(ids) > vocabulary:
        raise UserError(f"{path}: {len(ids)} tokens, but config.json has vocab_size={vocabulary}")
    if ids != list(range(len(ids))):
        raise UserError(f"{path}: ids must be 0 to {len(ids) - 1}, each once")
    unused = [AddedToken(f"<unused-{number}>") for number in range(len(ids), vocabulary)]
    tokenizer.add_special_tokens(unused)
    return tokenizer


def exchange_end(tokenizer: Tokenizer, end: int, path: Path) -> Tokenizer:
    """The tokenizer with ids 0 and `end` exchanged, without special tokens, truncation, padding.

    UserError if a tokenizer of this type cannot exchange them.
    """
    value = json.loads(tokenizer.to_str())
    value |= {"post_processor": None, "truncation": None, "padding": None}
    wanted = {token: exchanged(number, end) for token, number in tokenizer.get_vocab().items()}
    if end != END_ID:
        model = value["model"]
        for token in value["added_tokens"]:
            token["id"] = exchanged(token["id"], end)
        value["added_tokens"].sort(key=lambda token: token["id"])
        pieces = model["vocab"]
        if isinstance(pieces, dict):
            model["vocab"] = wanted  # ids of added tokens are read from here too
        elif max(end, END_ID) < len(pieces):  # a list, whose order gives the ids
            pieces[END_ID], pieces[end] = pieces[end], pieces[END_ID]
            if model.get("unk_id") is not None:
                model["unk_id"] = exchanged(model["unk_id"], end)
    changed = Tokenizer.from_str(json.dumps(value))
    if changed.get_vocab() != wanted:
        kind = value["model"]["type"]
        raise UserError(f"{path}: the end-of-text token of this {kind} tokenizer cannot get id 0")
    return changed


def exchanged(number: int, end: int) -> int:
    """The id after 0 and `end` are exchanged."""
    return {END_ID: end, end: END_ID}.get(number, number)
