"""The largest load a pool holds, and the fewest GPUs that hold a load: by policy, with bounds."""
