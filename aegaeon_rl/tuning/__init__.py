"""Black-box search for a policy's parameters over paired workloads."""
