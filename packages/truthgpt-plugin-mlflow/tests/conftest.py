"""Settings of MLflow, which it reads when it is imported."""

from __future__ import annotations

import os

# The store that needs no server; nothing is reported, and nothing is retried for minutes.
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
