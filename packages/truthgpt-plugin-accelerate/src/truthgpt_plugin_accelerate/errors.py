"""What can be wrong with training in several processes."""

from truthgpt_core.errors import TruthGPTError


class BackendError(TruthGPTError):
    """The training backend cannot do what it is asked to."""
