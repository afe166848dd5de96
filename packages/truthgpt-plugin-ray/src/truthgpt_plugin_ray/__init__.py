"""The cluster `ray`: batches through Ray Data, servers through Ray Serve."""
