"""Settings of trackio, which it reads when it is imported."""

from __future__ import annotations

import os
import tempfile

# A database of the tests' own; nothing on the hub is asked for.
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp(prefix="trackio-")
os.environ["HF_HUB_OFFLINE"] = "1"
