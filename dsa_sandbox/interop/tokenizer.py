"""The tokenizer of a folder made ours: END, which ends every document, has id 0.

What opens a document there opens it here: see data.opening.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from dsa_sandbox.data.opening import END_ID, record_opener
from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.folders import Files


class Words(NamedTuple):
    """A tokenizer as it is used here, the id that ends a text there, and what is worth saying."""

    tokenizer: Tokenizer
    end: int
    notes: list[str]


def brought(files: Files, config: dict[str, Any]) -> Words:
    """The tokenizer of a folder; UserError where it cannot be made ours."""
    tokenizer, file = read(files), files.folder / "tokenizer.json"
    beside = files.json("tokenizer_config.json") or {}
    end = end_of(files.folder, config, beside, tokenizer)
    named = {number: repr(token) for token, number in tokenizer.get_vocab().items()}
    begin = first_of(config.get("bos_token_id"), beside.get("bos_token"), tokenizer)
    notes = []
    if begin not in list(named):  # none is named, or one that no text has
        begin = end
    if end != END_ID:
        both = f"{named.get(END_ID)} and {named[end]}"  # an id 0 that is missing is refused below
        notes.append(f"{both} change places: what ends a text has id 0 here")
    if begin != end:
        notes.append(f"a text is opened by {named[begin]}, and ended by {named[end]}")
    tokenizer = filled(tokenizer, config["vocab_size"], file)
    tokenizer = ended_by_0(tokenizer, end, file)
    record_opener(tokenizer, swapped(int(begin), end))
    return Words(tokenizer, end, notes)


def read(files: Files) -> Tokenizer:
    """The folder's tokenizer.json; UserError where there is none, or none that can be read."""
    path, content = files.folder / "tokenizer.json", files.read("tokenizer.json")
    if content is None:
        other = files.folder / "tokenizer.model"
        if other.is_file():
            raise UserError(
                f"{other}: sentencepiece is not read; save it as tokenizer.json "
                "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) does)"
            )
        raise UserError(f"{path}: no such file")
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer: {error}") from None


def first_of(numbered: Any, token: Any, tokenizer: Tokenizer) -> Any:
    """The id that config.json gives, of several the first; else that of the token named beside."""
    if isinstance(numbered, list):
        numbered = numbered[0] if numbered else None
    token = token.get("content") if isinstance(token, dict) else token
    if numbered is None and isinstance(token, str):
        return tokenizer.token_to_id(token)
    return numbered


def end_of(
    folder: Path, config: dict[str, Any], beside: dict[str, Any], tokenizer: Tokenizer
) -> int:
    """The id of the token that ends a text; UserError where none does."""
    end = first_of(config.get("eos_token_id"), beside.get("eos_token"), tokenizer)
    if end is None:
        raise UserError(f"{folder / 'config.json'}: eos_token_id is missing: no token ends a text")
    if end not in tokenizer.get_vocab().values():
        raise UserError(f"{folder / 'config.json'}: eos_token_id={end} is not in tokenizer.json")
    return int(end)


def filled(tokenizer: Tokenizer, vocabulary: int, path: Path) -> Tokenizer:
    """The tokenizer with a token for each row of the embedding: some have rows to spare."""
    held = tokenizer.get_vocab()
    if len(held) > vocabulary:
        raise UserError(f"{path}: {len(held)} tokens, but config.json has vocab_size={vocabulary}")
    if sorted(held.values()) != list(range(len(held))):
        raise UserError(f"{path}: ids are not 0 to {len(held) - 1}, each once")
    spare = [AddedToken(f"<unused-{number}>") for number in range(len(held), vocabulary)]
    tokenizer.add_special_tokens(spare)
    return tokenizer


def ended_by_0(tokenizer: Tokenizer, end: int, path: Path) -> Tokenizer:
    """The tokenizer with ids 0 and `end` exchanged, which adds nothing to a text and cuts nothing.

    UserError where its kind keeps ids in a way that they cannot be exchanged in.
    """
    value = json.loads(tokenizer.to_str())
    value |= {"post_processor": None, "truncation": None, "padding": None}
    wanted = {token: swapped(number, end) for token, number in tokenizer.get_vocab().items()}
    if end != END_ID:
        model = value["model"]
        for token in value["added_tokens"]:
            token["id"] = swapped(token["id"], end)
        value["added_tokens"].sort(key=lambda token: token["id"])
        if isinstance(model["vocab"], dict):
            model["vocab"] = wanted  # an added token gets its id from here
        elif max(end, END_ID) < len(model["vocab"]):
            pieces = model["vocab"]
            pieces[END_ID], pieces[end] = pieces[end], pieces[END_ID]
            if model.get("unk_id") is not None:
                model["unk_id"] = swapped(model["unk_id"], end)
    made = Tokenizer.from_str(json.dumps(value))
    if made.get_vocab() != wanted:
        raise UserError(f"{path}: a {value['model']['type']} whose end token cannot become id 0")
    return made


def swapped(number: int, end: int) -> int:
    """The id with 0 and `end` exchanged."""
    return {END_ID: end, end: END_ID}.get(number, number)
