"""The verbs of the command line: one module each, with a `Config` and a `main(config)`."""

VERBS = {
    "demo": "the whole job on the bundled trace, in minutes: facts, baselines, training, verdict",
    "trace": "describe or convert a trace, or generate a market",
    "evaluate": "compare policies on a trace: intervals, verdict, report.html",
    "train": "train a policy on a trace, choose the best checkpoint, compare it on held-out time",
    "frontier": "the most models a pool holds, or the fewest GPUs for a trace, by policy; plan.csv",
    "replay": "play a trace as load against an OpenAI endpoint, and tell which tokens were on time",
    "tune": "a policy's parameters by search over paired workloads: policy.json, report.html",
    "serve": "a pool of models behind an OpenAI-compatible API, until SIGTERM",
    "bench": "speed of the emulator and of the environment on this machine",
}
