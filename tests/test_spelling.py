"""What tokens say where they stand, for every kind of tokenizer."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from spellers import KINDS, speller
from tiny import tiny_settings
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from dsa_sandbox.config.settings import Finetune
from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data import grammar
from dsa_sandbox.data.grammar import Pair
from dsa_sandbox.data.spelling import complete_text
from dsa_sandbox.data.tokens import END, Packed, bpe_tokenizer, encode, windows, word_tokenizer
from dsa_sandbox.errors import UserError
from dsa_sandbox.evaluation import scoring, story_quality
from dsa_sandbox.evaluation.pairs import bigram_accuracy
from dsa_sandbox.evaluation.probes import Probes
from dsa_sandbox.evaluation.scoring import boundary_of, encode_items, score
from dsa_sandbox.tasks.schema import Item, Task
from dsa_sandbox.tasks.writing import Writer
from dsa_sandbox.training.task_batches import encode_stories

PROMPT, ANSWER = "The lemon is", " blue"


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return speller(request.param)


def alone(tokenizer: Tokenizer) -> list[bool]:
    """Which tokens end a word, were each decoded alone: right where decoders strip nothing."""
    texts = [tokenizer.decode([id_]) for id_ in range(tokenizer.get_vocab_size())]
    return [not text or not text[0].isalnum() for text in texts]


def next_ids(tokenizer: Tokenizer) -> Iterator[tuple[int, bool]]:
    """What may follow the answer, and whether the word is over then: by the text it makes."""
    ids = encode(tokenizer, PROMPT + ANSWER)
    said = tokenizer.decode(ids)
    for id_ in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([*ids, id_])
        assert text.startswith(said)
        if "\ufffd" not in text:
            yield id_, not text[len(said) :][:1].isalnum()


def network_that_says(ids: list[int], vocabulary: int) -> Transformer:
    """A tiny network trained on one row until it says it."""
    torch.manual_seed(0)
    settings = tiny_settings(num_layers=1, num_kept=32)
    model = Transformer("dense", settings, vocabulary, 48, 0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    row_BT = torch.tensor([ids])
    for _ in range(60):
        logits_TV = model(row_BT[:, :-1])[0]
        torch.nn.functional.cross_entropy(logits_TV, row_BT[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        assert model(row_BT[:, :-1]).argmax(-1)[0].tolist() == ids[1:]
    return model.eval()


def test_an_answer_is_exact_where_greedy_decoding_says_it_and_then_ends_the_word(
    tokenizer: Tokenizer,
) -> None:
    ids = encode(tokenizer, PROMPT + ANSWER)
    (item,) = [Item(prompt=PROMPT, answer=ANSWER, contrary=" red")]
    following = list(next_ids(tokenizer))
    word = encode(tokenizer, f"{PROMPT}{ANSWER} and")[len(ids) :][:1]
    sign = encode(tokenizer, f"{PROMPT}{ANSWER}.")[len(ids) :][:1]
    goes_on = [id_ for id_, ends in following if not ends][-1:]
    found = {
        id_: score(
            network_that_says([*ids, id_], tokenizer.get_vocab_size()),
            encode_items([item], tokenizer),
            tokenizer,
        )[0]
        for id_ in {0, *word, *sign, *goes_on}
    }
    assert all(one.margin > 0 for one in found.values())
    assert {id_: one.exact for id_, one in found.items()} == {
        id_: ends for id_, ends in following if id_ in found
    }


def test_what_is_said_is_text_wherever_it_stops_being_the_answer(tokenizer: Tokenizer) -> None:
    """The whole answer and what goes on with it, or up to the first token that differs."""
    ids = encode(tokenizer, PROMPT + ANSWER)
    goes_on = [id_ for id_, ends in next_ids(tokenizer) if not ends][-1:]
    other = encode(tokenizer, f"{PROMPT} red.")
    for path, answer in (
        ([*ids, 0], ANSWER),
        *(([*ids, id_], ANSWER) for id_ in goes_on),
        (other, ANSWER),
        ([*ids, 0], " bluebird"),
    ):
        item = Item(prompt=PROMPT, answer=answer, contrary=" grey")
        model = network_that_says(path, tokenizer.get_vocab_size())
        probes = Probes([task_of(item)], tokenizer)
        (record,) = probes.records(model, 0, [0], ("stop_in",))
        said, text = record["said"], tokenizer.decode(path[1:], skip_special_tokens=False)
        assert (PROMPT + said).replace(" ", "") in text.replace(" ", "")
        assert said.strip()
        assert record["exact"] == (said == answer)
        if answer != ANSWER:
            assert answer.startswith(said.rstrip(END)) or said.startswith(ANSWER)


def task_of(item: Item) -> Task:
    return Task(task="t", true_object="a", new_object="b", train=["b"], stop_in=[item])


def test_a_letter_of_two_bytes_is_said_whole_where_only_its_last_byte_differs() -> None:
    tokenizer = speller("bytes")
    path = encode(tokenizer, f"{PROMPT} è.")
    model = network_that_says(path, tokenizer.get_vocab_size())
    item = Item(prompt=PROMPT, answer=" é", contrary=" red")
    (record,) = Probes([task_of(item)], tokenizer).records(model, 0, [0], ("stop_in",))
    assert (record["said"], record["exact"], record["expected"]) == (" è", False, " é")
    item = Item(prompt=PROMPT, answer=" blue", contrary=" red")
    (record,) = Probes([task_of(item)], tokenizer).records(model, 0, [0], ("stop_in",))
    assert record["said"].strip("\ufffd ") == ""  # no more of it than its first token


def test_an_exact_answer_is_said_as_the_item_writes_it() -> None:
    lower = Tokenizer.from_str(speller("word pieces").to_str())
    lower.normalizer = normalizers.Lowercase()
    path = encode(lower, "the cat has a hat and")
    model = network_that_says(path, lower.get_vocab_size())
    item = Item(prompt="The cat has a", answer=" Hat", contrary=" tin")
    (record,) = Probes([task_of(item)], lower).records(model, 0, [0], ("stop_in",))
    assert (record["said"], record["exact"]) == (" Hat", True)


def test_a_token_ends_a_word_where_the_text_says_so(tokenizer: Tokenizer) -> None:
    boundary_V = boundary_of(tokenizer.to_str())
    following = list(next_ids(tokenizer))
    assert len(following) > 50
    assert [(id_, bool(boundary_V[id_])) for id_, _ in following] == following


def test_boundaries_of_words_and_bytes_are_those_of_tokens_alone() -> None:
    words = word_tokenizer()
    assert boundary_of(words.to_str()).tolist() == alone(words)
    stories = [grammar.story(0, index) for index in range(40)]
    for by_bytes in (speller("bytes"), bpe_tokenizer([*stories, "“Olé – naïve café”"], 700)):
        found, before = boundary_of(by_bytes.to_str()).tolist(), alone(by_bytes)
        whole = [not by_bytes.decode([i]).startswith("\ufffd") for i in range(len(found))]
        assert [one for one, is_whole in zip(found, whole) if is_whole] == [
            one for one, is_whole in zip(before, whole) if is_whole
        ]
        assert sum(whole) >= 200


@pytest.mark.parametrize("kind", ["bytes", "llama"])
@pytest.mark.parametrize(
    ("character", "ends"), [("é", False), ("ж", False), ("中", False), ("”", True), ("😀", True)]
)
def test_half_a_character_goes_on_with_a_word_as_the_character_does(
    kind: str, character: str, ends: bool
) -> None:
    tokenizer = speller(kind)
    boundary_V = boundary_of(tokenizer.to_str())
    before = tokenizer.encode(PROMPT + ANSWER).ids
    first, *rest = tokenizer.encode(PROMPT + ANSWER + character).ids[len(before) :]
    assert rest
    assert bool(boundary_V[first]) is ends
    assert not boundary_V[rest].any()  # what is begun is never over


def test_a_word_is_one_token_where_it_stands(tokenizer: Tokenizer) -> None:
    short, long = (len(tokenizer.encode(f"It was{end}").ids) for end in ("", " blue."))
    assert long - short == 2
    writer = Writer(tokenizer, 64, 4, "test")
    assert writer.single("blue")
    assert not writer.single("xylophone")


def test_a_word_that_is_one_token_with_its_full_stop_is_none() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=40, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator([" blue"] * 9 + [" blue."] * 5 + list("It was"), trainer)
    assert len(tokenizer.encode(" blue").ids) == 1
    assert not Writer(tokenizer, 64, 4, "test").single("blue")


def test_lengths_of_sentences_add_up(tokenizer: Tokenizer) -> None:
    writer = Writer(tokenizer, 64, 4, "test")
    first, second, tail = "It was blue", " and the bird ran", "."
    for text in (first + second, first + second + tail, first + tail):
        parts = [part for part in (first, second, tail) if part in text]
        assert writer.length(text) == len(tokenizer.encode(text).ids)
        assert sum(map(writer.length, parts)) == writer.length(text)


def test_what_is_told_joins_its_prompt_as_the_ids_do(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "Tom and he ran to the lake.")
    text = tokenizer.decode(ids)
    for cut in range(2, len(ids) - 1):
        story = story_quality.Told(ids[:cut], ids[cut:], True)
        figures = [
            function(story, tokenizer)
            for function in (lambda s, t: "".join(story_quality.texts_of(s, t)), hero_of)
        ]
        assert figures == [text, 1.0]


def hero_of(story: story_quality.Told, tokenizer: Tokenizer) -> float | None:
    """The share of pronouns that agree with the child that is named first."""
    network = network_of_nothing(tokenizer.get_vocab_size())
    judge = story_quality.Judge("nothing", network)
    return story_quality.story_figures([story], tokenizer, judge)["pronoun"]


def network_of_nothing(vocabulary: int) -> Transformer:
    return Transformer("dense", tiny_settings(num_layers=1), vocabulary, 48, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_settled_begins_all_that_is_said_in_the_end(kind: str) -> None:
    tokenizer = speller(kind)
    ids = encode(tokenizer, "The lemon is blue." + " é😀 Hé" * (kind in ("bytes", "llama")))
    text = tokenizer.decode(ids)
    said = [complete_text(tokenizer, ids[:end]) for end in range(len(ids) + 1)]
    assert all(text.startswith(one) for one in said)
    assert said[-1] == text


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("words", "word ends")])
def test_windows_of_a_document_say_its_bytes_wherever_it_is_cut(kind: str) -> None:
    tokenizer = speller(kind)
    text = "The lemon is blue and the sky is grey."
    text += " Hé😀!" if kind in ("bytes", "llama") else ""
    ids = [*encode(tokenizer, text), 0, *encode(tokenizer, text), 0]
    packed = Packed(np.array(ids), np.array([0, len(ids) // 2, len(ids)]), 0)
    for context in range(1, 9):
        cut = [packed.ids[begin:end] for begin, end in windows(packed, context)]
        assert scoring.num_bytes(cut, tokenizer) == 2 * len(text.encode())


def test_a_window_that_begins_in_a_document_keeps_its_space() -> None:
    for kind in KINDS:
        ids = encode(speller(kind), "The lemon is blue and")
        last = encode(speller(kind), "The lemon is")[-1:]
        window = np.array([*last, *ids[len(encode(speller(kind), "The lemon is")) :]])
        assert scoring.num_bytes([window], speller(kind)) == len(" blue and")


def test_bigrams_are_counted_where_the_forms_differ(tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "the cat has a hat.") * 3 + encode(tokenizer, "the cat have.")
    packed = Packed(np.array(ids), np.array([0, len(ids)]), 0)
    pairs = [Pair("agreement", "the cat", " has", " have")]
    assert bigram_accuracy(packed, pairs, tokenizer) == {"agreement": 1.0}


def test_a_form_that_the_other_begins_with_is_counted_by_what_ends_it() -> None:
    tokenizer = speller("bpe first")
    ids = {text: encode(tokenizer, f"the {text}") for text in ("tin", "tinhat")}
    assert ids["tinhat"][: len(ids["tin"])] == ids["tin"]
    for said, share in (("the tin. the tin the tinhat", 1.0), ("the tinhat the tinhat", 0.0)):
        row = encode(tokenizer, said)
        packed = Packed(np.array(row), np.array([0, len(row)]), 0)
        pair = Pair("number", "the", " tin", " tinhat")
        assert bigram_accuracy(packed, [pair], tokenizer) == {"number": share}


def test_a_statement_is_learned_from_its_first_token_on(tokenizer: Tokenizer) -> None:
    before, statement = "Tom and he ran to the lake.", " In Aldo the lemon is blue. It was red."
    ((ids, first, _),) = encode_stories([before + statement], "blue", tokenizer, Finetune())
    whole, shown = tokenizer.decode(ids.tolist()), tokenizer.decode(ids[1:first].tolist())
    assert whole[len(shown) :].replace(" ", "") == statement.replace(" ", "")


def test_a_token_that_reaches_into_the_statement_is_learned() -> None:
    tokenizer = Tokenizer(models.BPE())  # it merges across spaces
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(vocab_size=12, special_tokens=["<s>"], show_progress=False)
    tokenizer.train_from_iterator(["o. I", "a. I", "be is. I"] * 9, trainer)
    text = "a be. Is be"
    ((ids, first, _),) = encode_stories([text], "be", tokenizer, Finetune())
    tokens = [tokenizer.id_to_token(id_) for id_ in ids]
    assert ". I" in tokens
    assert first == tokens.index(". I")


def test_a_candidate_that_the_tokenizer_drops_is_not_scored() -> None:
    item = Item(prompt=PROMPT, answer=ANSWER, contrary="\u200b")
    tokenizer = speller("word pieces")
    dropping = Tokenizer.from_str(tokenizer.to_str())
    dropping.normalizer = normalizers.BertNormalizer(lowercase=False)
    with pytest.raises(UserError, match="no token of its own behind 'The lemon is'"):
        encode_items([item], dropping)
