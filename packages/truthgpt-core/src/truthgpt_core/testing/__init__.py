"""Contract tests for authors of plugins. They run in pytest.

An author subclasses a contract, says how the plugin is configured and how to read back what it
did, and gets the tests that every plugin of the kind has to pass.
"""

from truthgpt_core.errors import TruthGPTError

try:
    import pytest
except ModuleNotFoundError:

    class PytestMissingError(TruthGPTError, ImportError):
        """The contract tests are imported where pytest is not installed."""

    raise PytestMissingError(
        "truthgpt_core.testing needs pytest, which is not installed",
        hint="Run: pip install pytest",
    ) from None

# Before it is imported, so that a failed assertion of the suite shows its values.
for _module in ("engine_logits", "engine_text", "engines", "tracking"):
    pytest.register_assert_rewrite(f"truthgpt_core.testing.{_module}")

from truthgpt_core.testing.engines import EngineContract  # noqa: E402
from truthgpt_core.testing.tracking import (  # noqa: E402
    RecordedRun,
    SimulatedTraining,
    TrackerContract,
)

__all__ = ["EngineContract", "RecordedRun", "SimulatedTraining", "TrackerContract"]
