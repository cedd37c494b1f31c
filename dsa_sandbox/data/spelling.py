"""What tokens say where they stand.

Decoders take a text to begin with its first token: some strip a space there, some put spaces or
marks elsewhere. So tokens are never decoded out of their context, only behind what precedes them.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice

from tokenizers import Tokenizer

NUM_CONTEXTS = 3  # words behind which a token is read: a decoder may rewrite one of them
HALF = "\ufffd"  # what decoders say of bytes that are no whole character
# First bytes of characters that are mostly signs: quotes, dashes, arrows, emoji; and HALF itself.
SIGNS = (0xC2, 0xE2, 0xEF, 0xF0, ord(HALF))
# Scripts that put no space between words, by how Unicode names their characters.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """How many first ids two rows share, or first characters two texts."""
    for index, (left, right) in enumerate(zip(a, b)):
        if left != right:
            return index
    return min(len(a), len(b))


def behind(before: str, whole: str) -> str:
    """What a text says beyond another that it begins with, or had begun with half a character."""
    return whole[common_length(before, whole) :]


def said_behind(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """What ids say behind others."""
    return behind(tokenizer.decode(before), tokenizer.decode([*before, *ids]))


def settled(tokenizer: Tokenizer, ids: list[int]) -> str:
    """What ids say whatever comes next: bytes that are no whole character yet may become one."""
    return tokenizer.decode(ids).rstrip(HALF)


def boundaries(tokenizer: Tokenizer) -> list[bool]:
    """For each token whether it ends a word that stands before it: specials, spaces, signs."""
    every = range(tokenizer.get_vocab_size())
    votes = [0] * len(every)
    contexts = some_words(tokenizer) or [[]]
    for word in contexts:
        before = tokenizer.decode(word)
        wholes = tokenizer.decode_batch([[*word, id_] for id_ in every])
        for id_, whole in enumerate(wholes):
            votes[id_] += ends_word(behind(before, whole), tokenizer.id_to_token(id_) or "")
    return [2 * count > len(contexts) for count in votes]


def some_words(tokenizer: Tokenizer) -> list[list[int]]:
    """A few words that the tokenizer says as it reads them, each as ids."""

    def read() -> Iterator[list[int]]:
        for id_ in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([id_])
            if text.strip().isalpha():
                ids = tokenizer.encode(text).ids
                if tokenizer.decode(ids) == text:
                    yield ids

    return list(islice(read(), NUM_CONTEXTS))


def ends_word(text: str, token: str) -> bool:
    """Whether a token that says `text` behind a word ends it; `token` is how the vocabulary has it.

    Half a character goes on with the word as the character would: the rest of one does, and so do
    the first bytes of letters, not those of signs.
    """
    if text.startswith(HALF):
        # bytes stand there as <0xE2>, or as in byte-level BPE: first ones as themselves, rests not
        return (int(token[3:5], 16) if token.startswith("<0x") else ord(token[0])) in SIGNS
    return not text or not text[0].isalnum()


def glued(left: str, right: str) -> bool:
    """Whether two neighbouring characters, either of which may be missing, are of one word."""
    return all(map(spells, (left, right)))


def spells(character: str) -> bool:
    """Whether a character is part of a word that stands apart from its neighbours."""
    if not character or unicodedata.name(character, "").startswith(UNSPACED):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of words that the tokenizer does not know; None where it has none."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def is_known(tokenizer: Tokenizer, text: str, unknown: int | None) -> bool:
    """Whether tokens say every character of a text: some tokenizers drop those they do not know."""
    encoding = tokenizer.encode(text)
    said = {place for begin, end in encoding.offsets for place in range(begin, end)}
    dropped = (c for place, c in enumerate(text) if place not in said and not c.isspace())
    # accents and control characters may be dropped on purpose, by a normalizer
    return unknown not in encoding.ids and all(unicodedata.category(c)[0] in "MC" for c in dropped)
