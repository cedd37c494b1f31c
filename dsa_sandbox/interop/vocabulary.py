"""The tokenizer of a folder made ours: END, which opens and ends every document, has id 0."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer

from dsa_sandbox.errors import UserError
from dsa_sandbox.interop.huggingface import END_ID, read_json


class Words(NamedTuple):
    """A tokenizer as it is used here, the id that ends a text there, and what is worth saying."""

    tokenizer: Tokenizer
    end: int
    notes: list[str]


def brought(folder: Path, config: dict[str, Any]) -> Words:
    """The tokenizer of a folder; UserError where it cannot be made ours."""
    tokenizer, file = read(folder), folder / "tokenizer.json"
    end, begin = end_of(folder, config, tokenizer), config.get("bos_token_id")
    named = {number: repr(token) for token, number in tokenizer.get_vocab().items()}
    notes = []
    if end != END_ID:
        both = f"{named.get(END_ID)} and {named[end]}"  # an id 0 that is missing is refused below
        notes.append(f"{both} change places: what ends a text has id 0 here")
    if begin in list(named) and begin != end:  # it may be a list
        notes.append(f"a text is opened by {named[end]}, not by {named[begin]}")
    tokenizer = filled(tokenizer, config["vocab_size"], file)
    return Words(opened_by_end(tokenizer, end, file), end, notes)


def read(folder: Path) -> Tokenizer:
    """The folder's tokenizer.json; UserError where there is none, or none that can be read."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        other = folder / "tokenizer.model"
        if other.is_file():
            raise UserError(
                f"{other}: sentencepiece is not read; save it as tokenizer.json "
                "(AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) does)"
            )
        raise UserError(f"{path}: no such file")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: not a tokenizer: {error}") from None


def end_of(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> int:
    """The id of the token that ends a text; of several, the first."""
    end: Any = config.get("eos_token_id")
    end = end[0] if isinstance(end, list) and end else end
    path = folder / "tokenizer_config.json"
    if end is None and path.is_file():
        name = read_json(path).get("eos_token")
        name = name.get("content") if isinstance(name, dict) else name
        end = None if name is None else tokenizer.token_to_id(str(name))
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


def opened_by_end(tokenizer: Tokenizer, end: int, path: Path) -> Tokenizer:
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
