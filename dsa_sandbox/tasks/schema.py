"""Task rows: JSON lines that make-tasks or a user writes, and finetune and eval read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from dsa_sandbox.data.spelling import in_one_word
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.registry import nearest
from dsa_sandbox.tasks.problems import Problem, problem_lines

SENTENCE_END = r"[.!?]\"?\s+"
INSIDE = ("stop_in", "validation_in", "transfer_in")  # the world's new object is right
OUTSIDE = ("stop_out", "validation_out", "transfer_out")  # the true object is right
KINDS = (
    *("stop_in", "stop_out", "validation_in", "validation_out", "transfer_in", "transfer_out"),
    "neighbour",
)
Frame = Literal["trained", "unseen"]
Where = Literal["this world", "no world", "real world", "contrast world", "unseen world"]
OLDER = {  # kinds of items before there were stop, validation and transfer items
    "cloze": "stop_in",
    "outside": "stop_out",
    "paraphrase": "transfer_in",
    "bleed": "transfer_out",
}
NEEDED = "train, true_object, new_object and one kind of items"


class Part(BaseModel):
    """A part of a row: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Item(Part):
    """One probe: does `answer` or another candidate follow `prompt`? Words start with their space.

    `contrary` is the object that is right on the other side of the world's border, `foils` are
    further wrong candidates.
    """

    prompt: str = Field(min_length=1, description="Text up to the answer.")
    answer: str = Field(
        min_length=1,
        description="Right continuation, with the space before it [the object of the kind].",
    )
    contrary: str = Field(
        min_length=1,
        description="Continuation that is right on the other side of the world's border "
        "[the other object; of a neighbour, the first foil].",
    )
    foils: list[str] = Field([], description="Further wrong continuations.")
    distance: Literal["near", "far"] | None = Field(
        None,
        description="near: the world's name is fewer than K tokens before the answer; far: at "
        "least 2K. Items in the world without a distance count as near.",
    )
    tokens: int | None = Field(
        None,
        strict=True,
        ge=0,
        description="Tokens from the world's name (or from a stated rule) to the answer.",
    )
    frame: Frame | None = Field(
        None, description="trained: stories have the sentence; unseen: none has."
    )
    where: Where | None = Field(None, description="Where the prompt is set.")

    @property
    def wrong(self) -> list[str]:
        """All candidates but the answer; the contrary object comes first."""
        return [self.contrary, *self.foils]

    @model_validator(mode="after")
    def _differ(self) -> "Item":
        candidates = [self.answer, *self.wrong]
        if not all(self.foils):
            raise ValueError("a foil is empty")
        if len(set(candidates)) < len(candidates):
            raise ValueError("answer, contrary and foils must all differ")
        return self


class Task(Part):
    """A world with one fact of its own: stories to learn it from, and probes.

    Stories, both objects and one kind of items are enough; what is left out is not measured. An
    item without answer or contrary gets the objects of its kind, each behind a space.
    """

    task: str = Field(min_length=1, description="Name [line N, by its line in the file].")
    world: str = Field("", description="The world's name.")
    family: str = Field("", description="Family of the fact.")
    subject: str = Field("", description="What the fact is about.")
    relation: str = Field("", description="Relation of subject and object.")
    true_object: str = Field(min_length=1, description="Object outside the world, without a space.")
    new_object: str = Field(min_length=1, description="Object in the world, without a space.")
    train: list[str] = Field(
        min_length=1, description="Stories to learn; each mentions the new object as a word."
    )
    contrast: list[str] = Field(
        [],
        description="The same stories outside the world; each mentions the true object. Without "
        "them every batch holds stories of the world alone.",
    )
    stop_in: list[Item] = Field(
        [], description="Items in the world that decide when the task is learned."
    )
    stop_out: list[Item] = Field([], description="Items outside it that decide, too.")
    validation_in: list[Item] = Field(
        [], description="Items in the world that report what was learned, and later what is left."
    )
    validation_out: list[Item] = Field([], description="Items outside it that report.")
    transfer_in: list[Item] = Field(
        [], description="Items in the world that ask what no story teaches, such as other frames."
    )
    transfer_out: list[Item] = Field(
        [], description="Items in worlds that no story names: the new object should not leak there."
    )
    neighbour: list[Item] = Field(
        [], description="Items about other facts of the relation, which should stay as they are."
    )
    undoes: str | None = Field(
        None, description="Name of the earlier task that this one contradicts."
    )
    _line: int = PrivateAttr(0)  # of the file it was read from

    @model_validator(mode="before")
    @classmethod
    def _candidates(cls, data: Any) -> Any:
        """Fill in answers and contraries that are left out."""
        if not isinstance(data, dict):
            return data
        new, true = data.get("new_object"), data.get("true_object")
        filled = dict(data)
        for kind in KINDS:
            if isinstance(items := filled.get(kind), list):
                pair = (new, true) if kind in INSIDE else (true, new)
                pair = pair if kind != "neighbour" else (None, None)
                filled[kind] = [completed(item, *pair) for item in items]
        return filled

    @model_validator(mode="after")
    def _asks_something(self) -> "Task":
        if not any(self.items(kind) for kind in KINDS):
            raise ValueError(f"no items; give at least one of {', '.join(KINDS)}")
        return self

    def items(self, kind: str) -> list[Item]:
        """The probes of one kind."""
        return list(getattr(self, kind))


def completed(item: Any, answer: Any, contrary: Any) -> Any:
    """The item with these objects where it names none; a foil that is the contrary is dropped.

    Where no contrary is known, it is the first foil.
    """
    if not isinstance(item, dict):
        return item
    filled = dict(item)
    foils = filled.get("foils")
    for key, word in (("answer", answer), ("contrary", contrary)):
        if isinstance(word, str):
            filled.setdefault(key, f" {word}")
    if isinstance(foils, list) and "contrary" not in item:
        if "contrary" not in filled and foils:
            filled["contrary"] = foils[0]
        filled["foils"] = [foil for foil in foils if foil != filled.get("contrary")]
    return filled


class TaskStream(NamedTuple):
    """Tasks in the order in which they are learned."""

    tasks: list[Task]
    name: str  # of the run, or the path of the file
    sha256: str  # of the bytes that they were read from
    of: str = ""  # where they are the first of a longer stream: its sha256


def write(tasks: list[Task]) -> str:
    """The rows as JSON lines; `undoes` stands only where a task undoes one."""
    rows = (task.model_dump(exclude=set() if task.undoes else {"undoes"}) for task in tasks)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read(path: Path) -> list[Task]:
    """Rows of a file; UserError names line and field of everything that is wrong."""
    return load(path).tasks


def load(path: Path) -> TaskStream:
    """The stream that a file holds, under its path as name; UserError as in `parsed`."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    return TaskStream(parsed(content, path), str(path), hashlib.sha256(content).hexdigest())


def parsed(content: bytes, path: Path) -> list[Task]:
    """Rows of what `path` holds; UserError names line and field of everything that is wrong.

    A row without a name is named after its line.
    """
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    rows = {number: line for number, line in enumerate(lines, 1) if line.strip()}
    if not rows:
        raise UserError(f"{path}: contains no task")
    tasks: list[Task] = []
    problems: list[Problem] = []
    for number, line in rows.items():
        try:
            row = {"task": f"line {number}", **as_object(line)}
            if older := [key for key in OLDER if key in row]:
                raise UserError(older_format(path, older))
            task = Task(**row)
        except json.JSONDecodeError as error:
            problems.append(Problem("JSON", number, "", f"not JSON: {error.msg}{hint_for(path)}"))
        except TypeError as error:
            problems.append(Problem("type", number, "", str(error)))
        except ValidationError as error:
            problems += explained(error, number)
        else:
            task._line = number
            tasks.append(task)
    problems += misnamed(tasks)
    if problems:
        raise UserError(*problem_lines(problems, len(rows), str(path)))
    return tasks


def older_format(path: Path, found: list[str]) -> str:
    """What to do with rows from before there were stop, validation and transfer items."""
    moves = ", ".join(f"{old} to {new}" for old, new in OLDER.items())
    return (
        f"{path}: rows of an older format (with {', '.join(found)}): run make-tasks again; in rows "
        f"of your own rename {moves}, and a distance in tokens to tokens (docs/tasks.md)"
    )


def hint_for(path: Path) -> str:
    """What helps where a file of another kind was given."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return "; examples/rows_from_csv.py writes rows from a table of facts"
    return "; every line is one JSON object (docs/tasks.md)"


def misnamed(tasks: list[Task]) -> list[Problem]:
    """Names that are given twice, and rows that undo one that does not come before them."""
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for task in tasks:
        if task.task in seen:
            text = f"{task.task} is already in line {seen[task.task]}"
            problems.append(Problem("name", task._line, "task", text))
        if task.undoes is not None and task.undoes not in seen:
            text = f"{task.undoes} is in no earlier line{nearest(task.undoes, list(seen))}"
            problems.append(Problem("undoes", task._line, "undoes", text))
        seen[task.task] = task._line
    return problems


def as_object(line: str) -> dict[str, Any]:
    """The line as a JSON object; TypeError where it is another value."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(f"a task is a JSON object, not {type(value).__name__}")
    return value


def explained(error: ValidationError, line: int) -> list[Problem]:
    """One problem for each invalid field, and one for all that the row lacks."""
    problems = []
    lacking = []
    for problem in error.errors(include_url=False):
        names = [str(part) for part in problem["loc"]]
        field, general = ".".join(names), ".".join(n for n in names if not n.isdigit())
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing" and len(names) == 1:
            lacking.append(field)
            continue
        if problem["type"] == "missing":
            message = "the field is missing"
        elif problem["type"] == "too_short":
            message = "the list is empty"
        elif problem["type"] == "extra_forbidden":
            known = Task if len(names) == 1 else Item
            message = f"no such field{nearest(names[-1], list(known.model_fields))}"
        kind = f"{problem['type']} {general}"
        problems.append(Problem(kind, line, field, f"{message[0].lower()}{message[1:]}"))
    if lacking:
        # items get their candidates from the objects: without these, theirs are missing too
        problems = [problem for problem in problems if not problem.kind.startswith("missing")]
        named, verb = " and ".join(lacking), "are" if len(lacking) > 1 else "is"
        text = f"{named} {verb} missing; a row needs {NEEDED} (docs/tasks.md)"
        problems.insert(0, Problem(f"lacks {named}", line, "", text))
    return problems


def mentions(text: str, object_: str) -> list[int]:
    """Start positions of an object as a separate word: "tired" does not mention "red"."""
    word = object_.strip()
    found = (match.start() for match in re.finditer(f"(?={re.escape(word)})", text))
    return [
        start
        for start in found
        if not in_one_word(text[start - 1 : start], word[:1])
        and not in_one_word(word[-1:], text[start + len(word) :][:1])
    ]


def statement_start(text: str, object_: str) -> int:
    """Start position of the sentence with the last mention of `object_`.

    Raises ValueError where there is none: the story would be learned as a whole.
    """
    found = mentions(text, object_)
    if not found:
        raise ValueError(f"no mention of {object_!r} in {text[:60]!r}")
    ends = [match.end() for match in re.finditer(SENTENCE_END, text[: found[-1]])]
    return ends[-1] if ends else 0
