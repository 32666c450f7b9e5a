"""State of the process that runs a command, and the libraries that commands compute with."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class State:
    """State of the running command."""

    debug: bool = False
    command: str = ""
    threads: int | None = None


state = State()


def start_libraries() -> None:
    """Import torch and OpenCV and set their numbers of threads; commands that compute begin so."""
    import cv2

    from sppdet.runs.environment import available_cores, set_threads

    # broken images are reported by sppdet
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    set_threads(state.threads or available_cores())
