"""The text of tokens in their context.

Decoders treat the first token as the start of a text: some strip a space there, some insert spaces
or marks elsewhere. So tokens are decoded together with the tokens before them, never alone.
"""

import json
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice

from tokenizers import Tokenizer

NUM_CONTEXTS = 3  # words after which a token is decoded; a decoder may change one of them
HALF = "\ufffd"  # the text of bytes that are not a whole character
# First bytes of characters that are mostly signs: quotes, dashes, arrows, emoji; and HALF itself.
SIGNS = (0xC2, 0xE2, 0xEF, 0xF0, ord(HALF))
# Scripts that put no space between words, by how Unicode names their characters.
UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Length of the common prefix of two sequences."""
    for index, (left, right) in enumerate(zip(a, b)):
        if left != right:
            return index
    return min(len(a), len(b))


def added_text(before: str, whole: str) -> str:
    """The rest of `whole` after the prefix it shares with `before`."""
    return whole[common_length(before, whole) :]


def text_after(tokenizer: Tokenizer, before: list[int], ids: list[int]) -> str:
    """The text that `ids` add after `before`."""
    return added_text(tokenizer.decode(before), tokenizer.decode([*before, *ids]))


def complete_text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ids without a trailing incomplete character, which later bytes may complete."""
    return tokenizer.decode(ids).rstrip(HALF)


def boundaries(tokenizer: Tokenizer) -> list[bool]:
    """For each token whether it ends the word before it: special tokens, spaces, punctuation."""
    every = range(tokenizer.get_vocab_size())
    votes = [0] * len(every)
    contexts = some_words(tokenizer) or [[]]
    for word in contexts:
        before = tokenizer.decode(word)
        wholes = tokenizer.decode_batch([[*word, id_] for id_ in every])
        for id_, whole in enumerate(wholes):
            votes[id_] += ends_word(added_text(before, whole), tokenizer.id_to_token(id_) or "")
    return [2 * count > len(contexts) for count in votes]


def some_words(tokenizer: Tokenizer) -> list[list[int]]:
    """A few words, as ids, that the tokenizer decodes to the text it encoded."""

    def read() -> Iterator[list[int]]:
        for id_ in range(tokenizer.get_vocab_size()):
            text = tokenizer.decode([id_])
            if text.strip().isalpha():
                ids = tokenizer.encode(text).ids
                if tokenizer.decode(ids) == text:
                    yield ids

    return list(islice(read(), NUM_CONTEXTS))


def ends_word(text: str, token: str) -> bool:
    """Whether a token with `text` after a word ends it; `token` is its entry in the vocabulary.

    Half a character counts as the whole one: later bytes and first bytes of letters continue the
    word, first bytes of punctuation end it.
    """
    if text.startswith(HALF):
        # a byte is written <0xE2>, or as byte-level BPE writes it: only first bytes as themselves
        return (int(token[3:5], 16) if token.startswith("<0x") else ord(token[0])) in SIGNS
    return not text or not text[0].isalnum()


def in_one_word(left: str, right: str) -> bool:
    """Whether two neighbouring characters belong to one word; either may be empty."""
    return all(map(is_word_character, (left, right)))


def is_word_character(character: str) -> bool:
    """Whether a character is part of a word in a script that separates words."""
    if not character or unicodedata.name(character, "").startswith(UNSPACED):
        return False
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the unknown token; None where the tokenizer has none."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def is_known(tokenizer: Tokenizer, text: str, unknown: int | None) -> bool:
    """Whether the tokens cover every character of a text: some tokenizers drop unknown ones."""
    encoding = tokenizer.encode(text)
    said = {place for begin, end in encoding.offsets for place in range(begin, end)}
    dropped = (c for place, c in enumerate(text) if place not in said and not c.isspace())
    # accents and control characters may be dropped on purpose, by a normalizer
    return unknown not in encoding.ids and all(unicodedata.category(c)[0] in "MC" for c in dropped)
