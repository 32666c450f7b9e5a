"""All areas of the fuzz campaign."""

from __future__ import annotations

from pathlib import Path

from campaigns.areas import Area
from campaigns.areas_annotations import annotation_areas, detection_areas
from campaigns.areas_arrays import proposal_areas, weight_areas
from campaigns.areas_commands import command_area
from campaigns.areas_formats import format_areas
from campaigns.areas_images import folder_area, image_area
from campaigns.areas_run import file_areas, journal_area, lock_area
from campaigns.areas_settings import settings_areas
from campaigns.areas_tensors import model_areas, store_areas
from campaigns.workspace import Snapshot, Workspace, add_oddities


def make_areas(space: Workspace, scratch: Path) -> tuple[list[Area], Snapshot]:
    """Every area, on one workspace, and what the workspace was before any case.

    Args:
        scratch: receives what commands print.
    """
    readers = [
        *annotation_areas(space),
        *detection_areas(space),
        *format_areas(space),
        *settings_areas(space),
        image_area(space),
        folder_area(space),
        *proposal_areas(space),
        *weight_areas(space),
        *file_areas(space),
        *model_areas(space),
        *store_areas(space),
        lock_area(space),
        journal_area(space),
    ]
    add_oddities(space)
    kept = Snapshot(space.root)
    return [*readers, command_area(space, kept, scratch)], kept
