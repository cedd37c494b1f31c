"""Task rows from a table of your own facts.

`python examples/rows_from_csv.py facts.csv > mine.jsonl`, then
`dsa-sandbox make-tasks --tasks mine.jsonl` and `dsa-sandbox finetune --tasks mine.jsonl`.

The table has a header and these columns; `other_sentence` may be left out or empty:

    world,subject,true_object,new_object,sentence,other_sentence
    Aldo,lemon,yellow,blue,the {subject} is {object},the {subject} looks {object}

Every row becomes a task: in the world, the sentence holds with the new object, elsewhere with the
true one. Stories and items put carrier text before the sentence, so that sparse attention has
something to leave out; `--carriers FILE` reads your own, one a line: the first half is for stories,
the next quarter for stop items, the last for validation items. The built-in carriers are in the
words of the built-in stories.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

NEEDED = ("world", "subject", "true_object", "new_object", "sentence")
CARRIERS = (
    "One day Lily went to the park with her friend Tom. The bird by the lake has a shell. Lily "
    "looked at herself in the lake and laughed. Then Tom threw the ball and it was gone. They "
    "looked for the ball behind the bridge, but it was not there.",
    "Ben was a tired boy. Every day he and Mia walked to the school. Mia was sad because she had "
    "lost her doll. An old man gave Ben a stick and he thanked him. Ben took his stick and ran to "
    "the hill. The doll was in the box near the ducks.",
    "It was a quiet day at the farm. Rosa and Leo wanted to play. The rabbit wanted to play with "
    "Rosa, so she threw the leaf. Leo made himself a little basket. Then the rabbits ran away and "
    "the basket was gone. Rosa was not happy, but she was calm.",
    "Once upon a time there was a boy named Finn. He lived near the village with Anna. Finn hurt "
    "himself, but he did not cry. Anna gave him a flower and a cup. The horses near the field "
    "were hungry. Finn and Anna sat down and ate some food together.",
    "There once was a little fox who had two friends, Zoe and Max. Zoe saw a frog and she gave it "
    "a leaf. Max did not want to share his toy with Zoe. The toys were in the box near the house. "
    "Then the fox ran away and the box was gone.",
    "One day Sam went to the lake with his friend Emma. The mouse by the bridge has a shell. Emma "
    "was proud because she had found it. Sam looked at the mouse and laughed. The shells near the "
    "box were gone, but Emma was brave.",
    "It was a quiet day at the lake. Ella and Jack wanted to play. Ella saw a duck and she gave it "
    "a leaf. Jack was sleepy because he had lost his stick. The sticks were in the box near the "
    "school. Ella took her leaf and ran to the bridge.",
    "One day Noah went to the market with his friend Kate. The bears by the bridge have a basket. "
    "Noah was not brave, but he was kind. Kate helped him, and she was proud. Then the bears ran "
    "away and the basket was gone. They looked behind the hill.",
)


def near(carrier: str, sentence: str, world: str) -> str:
    """The sentence, set in the world, after the carrier."""
    return f"{carrier} In {world} {sentence}"


def far(carrier: str, sentence: str, world: str) -> str:
    """The world, the carrier, and then the sentence without the world's name."""
    return f"This is a story from {world}. {carrier} {plain(sentence)}"


def plain(sentence: str) -> str:
    """The sentence with a capital."""
    return f"{sentence[0].upper()}{sentence[1:]}"


def row_of(fact: dict[str, str], carriers: list[str]) -> dict[str, Any]:
    """One task of four kinds of items, and of transfer items where the fact has another sentence.

    Far means that the whole carrier stands between name and answer: at least 2K tokens, where K
    is at most half of a carrier's words.
    """
    world, subject, true, new = (fact[name] for name in NEEDED[:4])
    lead, _, tail = fact["sentence"].replace("{subject}", subject).partition(" {object}")
    half, quarter = len(carriers) // 2, len(carriers) // 4
    told, stop, validation = (
        carriers[:half],
        carriers[half : half + quarter],
        carriers[half + quarter :],
    )

    def inside(some: list[str], asked: str, frame: str) -> list[dict[str, str]]:
        items = []
        for text in some:
            for distance, place in (("near", near), ("far", far)):
                about = {"distance": distance, "frame": frame, "where": "this world"}
                items.append({"prompt": place(text, asked, world), **about})
        return items

    def outside(some: list[str]) -> list[dict[str, str]]:
        items = []
        for text in some:
            items.append({"prompt": f"{text} {plain(lead)}", "where": "no world"})
            items.append({"prompt": near(text, lead, "the real world"), "where": "real world"})
        return [{**item, "frame": "trained"} for item in items]

    ending = f"{tail.removesuffix('.')}. The end."
    train = [f"{place(text, lead, world)} {new}{ending}" for text in told for place in (near, far)]
    elsewhere = [
        place
        for text in told
        for place in (near(text, lead, "the real world"), f"{text} {plain(lead)}")
    ]
    contrast = [f"{text} {true}{ending}" for text in elsewhere]
    row: dict[str, Any] = {"task": f"{world}-{subject}", "world": world, "subject": subject}
    row |= {"true_object": true, "new_object": new, "train": train, "contrast": contrast}
    row |= {"stop_in": inside(stop, lead, "trained"), "stop_out": outside(stop)}
    row |= {"validation_in": inside(validation, lead, "trained")}
    row |= {"validation_out": outside(validation)}
    if other := (fact.get("other_sentence") or "").strip():
        asked = other.replace("{subject}", subject).partition(" {object}")[0]
        row["transfer_in"] = inside(validation, asked, "unseen")
    return row


def rows_of(table: Path, carriers: list[str]) -> list[dict[str, Any]]:
    """Write one task for each line of the table.

    SystemExit where a line lacks a column, or a sentence its `{object}`.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            facts = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{table}: cannot be read: {error}")
    rows = []
    for number, fact in enumerate(facts, 2):
        empty = [name for name in NEEDED if not (fact.get(name) or "").strip()]
        if empty:
            sys.exit(f"{table}: line {number}: no {', '.join(empty)}; columns: {', '.join(NEEDED)}")
        if " {object}" not in fact["sentence"]:
            sys.exit(f"{table}: line {number}: sentence: put {{object}} where the object stands")
        rows.append(row_of({name: (text or "").strip() for name, text in fact.items()}, carriers))
    return rows


def main() -> None:
    """Print the rows of a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("table", type=Path, help="CSV file with a header")
    parser.add_argument("--carriers", type=Path, help="carrier texts, one a line, at least four")
    given = parser.parse_args()
    carriers = list(CARRIERS)
    if given.carriers:
        try:
            text = given.carriers.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            sys.exit(f"{given.carriers}: cannot be read: {error}")
        carriers = [line.strip() for line in text.splitlines() if line]
        if len(carriers) < 4:
            sys.exit(f"{given.carriers}: {len(carriers)} carriers; give at least four, one a line")
    for row in rows_of(given.table, carriers):
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
