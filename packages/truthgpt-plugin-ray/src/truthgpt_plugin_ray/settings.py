"""What can be set with `--on ray:OPTION=VALUE,...`."""

from __future__ import annotations

from pydantic import Field

from truthgpt_core.optimization import Options


class RayOptions(Options):
    """What each process of ours takes, and where the cluster is."""

    address: str | None = Field(
        None, description="Of a cluster, such as auto; RAY_ADDRESS if not given, else a local one."
    )
    cpus: float = Field(1.0, gt=0, description="CPU cores that each replica takes.")
    gpus: float = Field(0.0, ge=0, description="GPUs that each replica takes.")
