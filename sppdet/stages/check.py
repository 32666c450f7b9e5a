"""The check of a data set before training: a table, `check.json` and a page with the worst cases drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sppdet.config import Config
from sppdet.runs.log import LOGGER, RESULT, consoles
from sppdet.runs.owned import replace_files
from sppdet.stages.check_findings import Finding, sorted_findings
from sppdet.stages.check_page import counts, files_of, print_findings, tally
from sppdet.stages.check_proposals import search_sample
from sppdet.stages.check_reading import Survey, survey
from sppdet.stages.settle import settle


@dataclass(frozen=True)
class Check:
    """Hold what was read, and the findings, the most serious first."""

    survey: Survey
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> int:
        """Count the cases that are errors."""
        return tally(self.findings)["error"]


def check_data(config: Config, out: Path, *, name: str, sample: int = 100) -> Check:
    """Look at the data that a training by the settings would use; nothing is changed.

    Prints a table and writes `check.json` and `check.html` into `out`. Where no test set is named or found,
    all images are looked at as one set.

    Args:
        name: of the data, for the page.
        sample: number of images to search for proposals; 0 for none.

    Raises:
        DataError: no format is found, or a set can't be read at all.
        ArtifactError: a file in `out` isn't of a check.
    """
    config = settle(config, None)
    if isinstance(config.data.test, float):  # a run draws it, keeping similar images on one side
        data = config.data.model_copy(update={"test": None})
        config = config.model_copy(update={"data": data})
    found = survey(config)
    if sample:
        search_sample(found, sample)
    result = Check(found, tuple(sorted_findings(found.cases)))
    replace_files(out, files_of(found, result.findings, name=name), command="check")
    for console in consoles():
        print_findings(found, result.findings, console)
    LOGGER.log(RESULT, "%s; see %s", counts(result.findings), out / "check.html")
    return result
