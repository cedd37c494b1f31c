"""Task rows: JSON lines that make-tasks or a user writes, and finetune and eval read."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from dsa_sandbox.data.spelling import in_one_word
from dsa_sandbox.errors import UserError, reason
from dsa_sandbox.registry import nearest

SENTENCE_END = r"[.!?]\"?\s+"
KINDS = ("cloze", "paraphrase", "neighbour", "outside", "bleed")


class Part(BaseModel):
    """A part of a row: immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Item(Part):
    """One probe: which of `answer` and `foils` follows `prompt`? Words start with their space."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    foils: list[str] = Field(min_length=1)
    # tokens from the world's name (or its stated rule) to the answer
    distance: int | None = Field(None, strict=True)

    @model_validator(mode="after")
    def _differ(self) -> "Item":
        candidates = [self.answer, *self.foils]
        if not all(self.foils):
            raise ValueError("a foil is empty")
        if len(set(candidates)) < len(candidates):
            raise ValueError("answer and foils must all differ")
        return self


class Task(Part):
    """A world with one fact of its own: stories to learn it from, and probes."""

    task: str = Field(min_length=1)
    world: str = Field(min_length=1)
    family: str
    subject: str
    relation: str
    true_object: str = Field(min_length=1)
    new_object: str = Field(min_length=1)
    train: list[str] = Field(min_length=1)
    contrast: list[str] = Field(min_length=1)
    cloze: list[Item] = Field(min_length=1)
    paraphrase: list[Item] = Field(min_length=1)
    neighbour: list[Item] = Field(min_length=1)
    outside: list[Item] = Field(min_length=1)
    bleed: list[Item] = Field(min_length=1)
    undoes: str | None = None  # the earlier task that this one contradicts
    _line: int = PrivateAttr(0)  # of the file it was read from

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
