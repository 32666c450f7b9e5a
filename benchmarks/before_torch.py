"""Set the variables that torch reads when it is imported, as the command line does."""

from sppdet.runs.environment import set_variables

set_variables()
