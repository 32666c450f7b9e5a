"""Every error that sppdet raises on purpose.

    SppdetError
    ├── ConfigError        a setting: unknown, of the wrong type, impossible
    ├── DataError          pictures and annotations
    │   ├── AnnotationError
    │   └── ImageError
    ├── ArtifactError      a file of a run: missing, damaged, made by other settings
    ├── WeightsError       pre-trained weights: missing, of another network
    └── TrainingError      a stage that cannot go on: a class without a positive, a loss that is not finite

The message is one line that says where, what and what was expected; the command line prints it as
it is and exits with status 1.
"""


class SppdetError(Exception):
    """Base of all errors with a message meant for the user."""


class ConfigError(SppdetError):
    """A setting is unknown, has the wrong type or an impossible value."""


class DataError(SppdetError):
    """Something is wrong with the pictures or the annotations."""


class AnnotationError(DataError):
    """An annotation can't be read or describes an impossible object."""


class ImageError(DataError):
    """A picture is missing or can't be decoded."""


class ArtifactError(SppdetError):
    """A file of a run is missing, damaged or made by other settings."""


class WeightsError(SppdetError):
    """Pre-trained weights are missing or don't fit the network."""


class TrainingError(SppdetError):
    """A training stage can't go on."""
