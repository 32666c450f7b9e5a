"""The proposals stage: search every image and measure recall."""

from __future__ import annotations

from sppdet.proposals.recall import small_objects
from sppdet.runs.artifacts import remove_leftovers
from sppdet.runs.environment import worker_count
from sppdet.runs.log import LOGGER, event
from sppdet.stages.context import Context
from sppdet.stages.proposer import Proposer


def propose(context: Context) -> bool:
    """Store the proposals of all images; returns False if they were there already."""
    ranks, config = context.ranks, context.config
    if ranks.is_first:
        remove_leftovers(context.store)  # it may lie outside of the run
    context.proposer = Proposer(config.proposals, context.store)
    datasets = [s for s in (context.training_set, context.test_set) if s is not None]
    made = 0
    for dataset in datasets:
        made += context.proposer.fill(
            ranks.share(dataset.images),
            context.images,
            workers=worker_count(config.workers),
            label=dataset.name,
        )
    if ranks.is_first:
        for dataset in datasets:
            context.proposer.measure(dataset, context.images)
        _warn_of_small_objects(context)
    return ranks.sums([made])[0] > 0


def _warn_of_small_objects(context: Context) -> None:
    """Log objects of the training set that are smaller than what the settings let be proposed."""
    if "stored" not in context.config.proposals.engines():
        found = small_objects(context.training_set.images, context.config.proposals)
        if found is not None:
            facts = event("small objects", split=context.training_set.name, **vars(found))
            LOGGER.warning("%s: %s", context.training_set.name, found, extra=facts)
