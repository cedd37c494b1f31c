"""Experience replay: adds stored stories and pre-training sequences to every step.

Rolnick et al. 2019, arXiv 1811.11682; a reservoir as in Chaudhry et al. 2019, arXiv 1902.10486.
"""

from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Position, Trainee
from dsa_sandbox.strategies.rehearsal import Rehearsal, RehearsalSettings


@strategies.register("replay")
class Replay(Rehearsal):
    """Adds a batch of stored stories and one of pre-training sequences to the task's own.

    A step's loss is the mean over all its targets. Only the statement of a story has targets, but
    every token of a pre-training sequence: one sequence has the weight of many stories.
    """

    Settings = RehearsalSettings

    def extra_batches(self, trainee: Trainee, position: Position) -> list[Batch]:
        drawn = self.draw(position.generator())
        return [self.batch(buffer, rows) for buffer, rows in drawn.items()]
