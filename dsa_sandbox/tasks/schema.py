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

SENTENCE_END = r"[.!?]\"?\s+"
INSIDE = ("stop_in", "validation_in", "transfer_in")  # the world's new object is right
OUTSIDE = ("stop_out", "validation_out", "transfer_out")  # the true object is right
KINDS = (
    *("stop_in", "stop_out", "validation_in", "validation_out", "transfer_in", "transfer_out"),
    "neighbour",
)
Frame = Literal["trained", "unseen"]
Where = Literal["this world", "no world", "real world", "contrast world", "unseen world"]


class Part(BaseModel):
    """A part of a row: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Item(Part):
    """One probe: does `answer` or another candidate follow `prompt`? Words start with their space.

    `contrary` is the object that is right on the other side of the world's border, `foils` are
    further wrong candidates.
    """

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    contrary: str = Field(min_length=1)
    foils: list[str] = []
    # the world's name stands closer to the answer than K tokens, or at least 2K before it
    distance: Literal["near", "far"] | None = None
    # tokens from the world's name (or from the stated rule) to the answer
    tokens: int | None = Field(None, strict=True, ge=0)
    frame: Frame | None = None  # whether stories have the sentence
    where: Where | None = None

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

    task: str = Field(min_length=1)
    world: str = ""
    family: str = ""
    subject: str = ""
    relation: str = ""
    true_object: str = Field(min_length=1)
    new_object: str = Field(min_length=1)
    train: list[str] = Field(min_length=1)
    contrast: list[str] = []
    stop_in: list[Item] = []
    stop_out: list[Item] = []
    validation_in: list[Item] = []
    validation_out: list[Item] = []
    transfer_in: list[Item] = []
    transfer_out: list[Item] = []
    neighbour: list[Item] = []
    undoes: str | None = None  # the earlier task that this one contradicts
    _line: int = PrivateAttr(0)  # of the file it was read from

    @model_validator(mode="before")
    @classmethod
    def _objects(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        objects = {"answer": data.get("new_object"), "contrary": data.get("true_object")}
        swapped = {"answer": data.get("true_object"), "contrary": data.get("new_object")}
        filled = dict(data)
        for kinds, candidates in ((INSIDE, objects), (OUTSIDE, swapped)):
            spaced = {key: f" {word}" for key, word in candidates.items() if isinstance(word, str)}
            for kind in kinds:
                items = filled.get(kind)
                if isinstance(items, list):
                    filled[kind] = [
                        {**spaced, **item} if isinstance(item, dict) else item for item in items
                    ]
        return filled

    @model_validator(mode="after")
    def _asks_something(self) -> "Task":
        if not any(self.items(kind) for kind in KINDS):
            raise ValueError(f"no items: give one of {', '.join(KINDS)}")
        return self

    def items(self, kind: str) -> list[Item]:
        """The probes of one kind."""
        return list(getattr(self, kind))


class TaskStream(NamedTuple):
    """Tasks in the order in which they are learned."""

    tasks: list[Task]
    name: str  # of the run, or the path of the file
    sha256: str  # of the bytes that they were read from


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
    """Rows of what `path` holds; UserError names line and field of everything that is wrong."""
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    tasks: list[Task] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            task = Task(**as_object(line))
        except json.JSONDecodeError as error:
            problems.append(f"{path}: line {number}: not JSON: {error.msg}")
            continue
        except (TypeError, ValidationError) as error:
            problems += [f"{path}: line {number}: {text}" for text in explained(error)]
            continue
        if task.task in seen:
            problems.append(
                f"{path}: line {number}: task: {task.task} is already in line {seen[task.task]}"
            )
        if task.undoes is not None and task.undoes not in seen:
            problems.append(
                f"{path}: line {number}: undoes: {task.undoes} is in no earlier line"
                f"{nearest(task.undoes, list(seen))}"
            )
        seen[task.task] = number
        task._line = number
        tasks.append(task)
    if not tasks and not problems:
        problems.append(f"{path}: contains no task")
    if problems:
        raise UserError(*problems)
    return tasks


def as_object(line: str) -> dict[str, Any]:
    """The line as a JSON object; TypeError where it is another value."""
    value = json.loads(line)
    if not isinstance(value, dict):
        raise TypeError(f"a task is a JSON object, not {type(value).__name__}")
    return value


def explained(error: TypeError | ValidationError) -> list[str]:
    """One message for each invalid field."""
    if isinstance(error, TypeError):
        return [str(error)]
    texts = []
    for problem in error.errors(include_url=False):
        field = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "missing":
            message = "the field is missing"
        elif problem["type"] == "too_short":
            message = "the list is empty"
        elif problem["type"] == "extra_forbidden":
            message = f"no such field{nearest(field, list(Task.model_fields))}"
        texts.append(f"{field}: {message[0].lower()}{message[1:]}")
    return texts


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
