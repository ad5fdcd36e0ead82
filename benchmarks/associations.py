"""Coverage of intervals and level of tests of the group level's regressions, on cohorts with a known rate.

``python benchmarks/associations.py [--repeats 200] [--people 100] [--sessions 1]`` simulates tables (no images):
counts are negative binomial and grow by 2 % a year of age (odds of a higher grade, and of severe EPVS, by 6 %);
``noise`` has no effect. Printed: the share of 95 % intervals that hold the true effect of age, and the share of cohorts
where ``noise`` is significant at 0.05.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from bids_epvs.group import association
from bids_epvs.records import Cohort

RATE, ODDS = 1.02, 1.06
OUTCOMES = {"count": RATE, "rating": ODDS, "severity": ODDS, "np.log(volume_mm3)": 0.02}
REGION_MM3 = 30_000.0


def cohort(rng: np.random.Generator, people: int, sessions: int) -> Cohort:
    """One region by one method; sessions of a person share a random effect."""
    age, noise = rng.uniform(45, 90, people), rng.normal(size=people)
    effect = rng.normal(0, 0.4, people) if sessions > 1 else np.zeros(people)
    rows, covariates = [], []
    for who in range(people):
        for session in range(sessions):
            ids = {"participant_id": f"sub-{who:04d}", "session_id": f"ses-{session + 1}"}
            size = REGION_MM3 * np.exp(rng.normal(0, 0.1))
            mean = size / REGION_MM3 * 20 * np.exp(np.log(RATE) * (age[who] - 65) + effect[who])
            latent = np.log(ODDS) * (age[who] - 65) + effect[who] + rng.logistic()
            grade = int(np.searchsorted([-2, -0.5, 1, 2.5], latent))
            rows.append(
                {
                    **ids, "label": "_".join(ids.values()), "model": "unet", "region": "BasalGanglia",
                    "hemisphere": "both", "count": float(rng.poisson(mean * rng.gamma(3, 1 / 3))),
                    "rating": float(grade), "rating_scale": "Potter", "region_volume_mm3": size,
                    "volume_mm3": float(np.exp(0.02 * (age[who] - 65) + effect[who] + rng.normal(0, 0.5))),
                }
            )  # fmt: skip
            covariates.append({**ids, "age": age[who], "noise": noise[who]})
    return Cohort(pd.DataFrame(covariates), pd.DataFrame(rows), {}, ("age", "noise"))


def main() -> None:
    """Print a row an outcome."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--people", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    formulas = [f"{outcome} ~ age + noise" for outcome in OUTCOMES]
    found = []
    for repeat in range(args.repeats):
        made = cohort(np.random.default_rng([args.seed, repeat]), args.people, args.sessions)
        found.append(association.associations(made, formulas))
    every = pd.concat(found, ignore_index=True)
    print("outcome\tregression\tcohorts\tage covered\tnoise significant\tage significant")
    for formula, truth in zip(formulas, OUTCOMES.values(), strict=True):
        own = every[every["formula"] == formula]
        age, noise = own[own["term"] == "age"], own[own["term"] == "noise"]
        covered = ((age["value_low"] <= truth) & (truth <= age["value_high"])).mean()
        kinds = "/".join(own["regression"].dropna().unique())
        print(
            f"{formula.split(' ~')[0]}\t{kinds}\t{len(age)}\t{covered:.3f}\t{(noise['p'] < 0.05).mean():.3f}"
            f"\t{(age['p'] < 0.05).mean():.3f}"
        )


if __name__ == "__main__":
    main()
