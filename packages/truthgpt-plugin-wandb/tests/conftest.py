"""Settings of wandb, which it reads when it is imported."""

from __future__ import annotations

import os

# Without a section that says offline, there is no server and no account; nothing is reported.
os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
os.environ["WANDB_ERROR_REPORTING"] = "false"
os.environ.pop("WANDB_API_KEY", None)
os.environ["NETRC"] = os.devnull
