"""Experience replay: adds stored stories and pre-training sequences to every step.

Rolnick et al. 2019, arXiv 1811.11682; a reservoir as in Chaudhry et al. 2019, arXiv 1902.10486.
"""

from dsa_sandbox.core.transformer import Transformer
from dsa_sandbox.data.tokens import Batch
from dsa_sandbox.registry import strategies
from dsa_sandbox.strategies.base import Place
from dsa_sandbox.strategies.rehearsal import Rehearsal, RehearsalSettings


@strategies.register("replay")
class Replay(Rehearsal):
    """Stories of finished tasks and sequences of pre-training, a batch each beside the task's own.

    A step's loss is the mean over all its tokens. Of a story, those of its statement count; of a
    sequence of pre-training, all: one of them has the weight of many stories.
    """

    Settings = RehearsalSettings

    def before_step(self, model: Transformer, place: Place) -> list[Batch]:
        return [self.batch(shelf, rows) for shelf, rows in self.draw(place.generator()).items()]
