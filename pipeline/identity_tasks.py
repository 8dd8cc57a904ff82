"""Finding the shapes of people as tasks of an executor: one part a task, like shards.

A part is a range of identities whose file a rerun keeps (`identities.py`). Workers read the label
file themselves; nothing but numbers is sent.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import identities
from pipeline.attempts import Portion
from pipeline.bodies import Models
from pipeline.errors import Incomplete
from pipeline.executors import Died, Executor, Outcome, Raised, Survived
from pipeline.identity_shapes import part_file
from pipeline.task import Beat, Job, OpenedPlan, Order, Say
from skel_fit.signs import signs_of_life

MOST_ATTEMPTS = 3
"""How often a part is tried in one run."""
_TICK = 0.5
_DOING = "finding the shapes of people"


@dataclass(frozen=True)
class ShapesJob(Job):
    """A job whose orders are parts of the identities: `Order.part` are places of identities, and
    `Order.shard` the number of their file."""

    def open(self, say: Say) -> ShapesWorker:
        return ShapesWorker(self, say)


class ShapesWorker:
    """A process's open source and loaded models; finds the shapes of any part."""

    def __init__(self, job: Job, say: Say) -> None:
        self._job, self._say = job, say
        self._opened = OpenedPlan(job, say)
        plan = job.plan
        assert plan.body is not None and job.models is not None
        self._models = Models(job.models, plan.body.name, plan.body.vertices)
        self._people = identities.People.of(self._opened.source, identities.most_meshes())

    def run(self, order: Order) -> None:
        """Write the file of a part. Raises InputError: labels that cannot have shapes."""
        assert order.part is not None
        self._opened.check_unchanged()
        part = range(*order.part)
        meshes = sum(len(self._people.rows[place]) for place in part)
        numbers = itertools.count(1)

        def alive() -> None:
            self._say(Beat(order.shard, _DOING, step=meshes, sign=next(numbers)))

        self._say(Beat(order.shard, _DOING, step=meshes))
        with signs_of_life(alive):
            shapes = identities.solve_part(
                self._job.plan, self._opened.source, self._models, self._people, part
            )
        self._opened.check_code()
        shapes.write(part_file(self._job.directory, order.shard))


def find_parts(
    executor: Executor, parts: Sequence[tuple[int, range]], found: Callable[[int], None]
) -> None:
    """Run the parts, each with its number, to their end. found: told the people of each.

    Raises PipelineError: a part cannot be done; those that are done keep their files.
    """
    queue, busy = deque(parts), dict[int, range]()
    tried = {number: 0 for number, _ in parts}

    def order(number: int, part: range) -> Order:
        tried[number] += 1
        portion = Portion(step=len(part), block_size=None)
        return Order(number, tried[number], portion, part=(part.start, part.stop))

    def failed(number: int, reason: str) -> None:
        part = busy.pop(number)
        if tried[number] >= MOST_ATTEMPTS:
            raise Incomplete(
                f"shapes of people {part.start} to {part.stop - 1}: tried {tried[number]} times: "
                f"{reason}; rerun to try again, what was found is kept"
            )
        queue.append((number, part))

    def heard(outcome: Outcome) -> None:
        match outcome:
            case Survived(number):
                found(len(busy.pop(number)))
            case Raised(fatal=fatal) if fatal is not None:
                raise fatal
            case Raised(number, kind, message):
                failed(number, f"{kind}: {message}")
            case Died(number, reason):
                failed(number, reason)

    try:
        while busy or queue:
            if not busy and not executor.usable:
                raise Incomplete("the shapes of people cannot be found here; rerun to go on")
            while queue and executor.free():
                number, part = queue.popleft()
                busy[number] = part
                executor.submit(order(number, part))
            for outcome in executor.wait(_TICK):
                heard(outcome)
    finally:
        executor.close()
