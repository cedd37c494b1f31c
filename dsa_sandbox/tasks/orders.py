"""Orders of a stream: the rows of a Latin square over its tasks.

Position and task are then apart: over all orders each task stands at each position once.
"""

import hashlib

from dsa_sandbox.errors import UserError
from dsa_sandbox.tasks import schema
from dsa_sandbox.tasks.schema import Task, TaskStream


def row(order: int, count: int) -> list[int]:
    """The task at each position of order `order` (0 <= order < count); order 0 leaves them as made.

    The square is E. J. Williams' (Australian J. of Scientific Research A 2, 149, 1949), its tasks
    named so that its first row is 0, 1, 2, ...: where `count` is even, each ordered pair of
    neighbours occurs in exactly one order; where it is odd, in at most two.
    """
    zigzag = [(i + 1) // 2 if i % 2 else (count - i // 2) % count for i in range(count)]
    name = {label: position for position, label in enumerate(zigzag)}
    return [name[(label + order) % count] for label in zigzag]


def check(order: int, count: int) -> None:
    """UserError where a stream of so many tasks has no such order."""
    if order >= count:
        raise UserError(
            f"tasks.order={order}: a stream of {count} tasks has the orders 0 to {count - 1}"
        )


def arranged(tasks: list[Task], order: int) -> list[Task]:
    """The tasks in an order; UserError where there is no such order, or rows undo earlier ones."""
    check(order, len(tasks))
    if order and any(task.undoes for task in tasks):
        raise UserError(
            f"tasks.order={order}: tasks that undo earlier ones have a fixed order; use 0"
        )
    return [tasks[number] for number in row(order, len(tasks))]


def first(stream: TaskStream, count: int | None) -> TaskStream:
    """The first tasks of a stream, or all of them for None; UserError where it has fewer."""
    if count is None or count == len(stream.tasks):
        return stream
    if count > len(stream.tasks):
        raise UserError(f"--first={count}: {stream.name} has {len(stream.tasks)} tasks")
    tasks = stream.tasks[:count]
    sha256 = hashlib.sha256(schema.write(tasks).encode()).hexdigest()
    return TaskStream(tasks, stream.name, sha256, of=stream.sha256)
