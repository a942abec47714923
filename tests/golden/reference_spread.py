"""How far the reference ends up from its own recorded trajectories on this machine: makes reference_spread.json.

Run by hand, in the reference's environment and from the repository's root (one process for each case of two replicas):

  SIMCLR_REFERENCE=<checkout>/tf2 python -m tests.golden.reference_spread <draws> <case> ...

For each case it prints the largest distances over the recorded weights and `draws` starts whose last bits differ.
"""

import json
import sys

import numpy as np

from tests.golden.recorded import read
from tests.golden.reference import TERMS, trajectories


def relative(value, expected):
    return abs(value - expected) / max(abs(expected), 1e-12)


def distances(case, before, after, losses):
    """Of a run from the recording: of the losses at each step, and of the variables after the last."""
    pairs = zip(losses, case["per_step"], strict=True)
    found = dict(losses=[max(relative(ours[t], recorded[t]) for t in TERMS) for ours, recorded in pairs])
    norms, changes = [], [0.0]
    for name, (norm, total, change) in case["final_variables[l2_norm,sum,l1_change]"].items():
        value = after[name].astype(np.float64)
        norms.append(relative(np.linalg.norm(value), norm))
        if change:
            moved = np.abs(value - before[name]).sum()
            changes += [abs(moved - change) / change, abs(value.sum() - total) / change]
    return found | dict(l2_norm=max(norms), median_l2_norm=np.median(norms), l1_change=max(changes))


def main(draws, *names):
    for name in names:
        case = read("training_steps.json.gz")[name]
        runs = [distances(case, *ran) for ran in trajectories(case, range(int(draws) + 1))]
        largest = {key: np.max([run[key] for run in runs], axis=0).tolist() for key in runs[0]}
        print(json.dumps({name: dict(runs=len(runs)) | largest}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
