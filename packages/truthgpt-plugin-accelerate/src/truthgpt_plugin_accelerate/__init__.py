"""The training backend `accelerate`: several processes, on CPUs or GPUs, with DDP or FSDP2."""
