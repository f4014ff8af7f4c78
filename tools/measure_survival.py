"""Measure what is left of a generator's closing when its images are handled by others, or its bound is lowered.

    .venv/bin/python tools/measure_survival.py "equal=promenade" "robust=faap_outputs/robust" \\
        --ladder "equal .05=faap_outputs/epsilon_.05" --ladder "equal .025=faap_outputs/epsilon_.025"

All on Promenade's test split, in front of its biased detector. What was measured before stays, unless
it is measured again. It writes docs/results/measured/survival.json, from which tools/write_results.py fills in the
tables of docs/results.md and draws their plot.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import faap
from faap.evaluation import evaluate
from faap.evaluation.arrival import AS_MADE, Arrival

OUT = Path(__file__).parents[1] / "docs" / "results" / "measured" / "survival.json"
ARRIVALS = (AS_MADE, Arrival(jpeg=95), Arrival(jpeg=75), Arrival(resize=0.9), Arrival(resize=1.1), Arrival(shift=3))
LOWER = (0.05, 0.025)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generators", nargs="*", metavar="NAME=GENERATOR", help="through every arrival")
    parser.add_argument("--ladder", action="append", default=[], metavar="NAME=GENERATOR", help="as it is made only")
    parser.add_argument("--lower", action="append", default=[], metavar="NAME=GENERATOR", help="at lower bounds")
    args = parser.parse_args()
    detector, dataset = faap.load_detector("promenade"), faap.load_dataset("promenade")
    rows: list[dict[str, Any]] = json.loads(OUT.read_text()) if OUT.exists() else []

    def measure(given: str, arrival: Arrival = AS_MADE, epsilon: float | None = None, *, kind: str) -> None:
        name, _, place = given.partition("=")
        generator = faap.load_generator(place, epsilon=epsilon)
        found = evaluate(detector, generator, dataset, arrival=arrival)
        changes = {group: {"AP": moved["AP"]} for group, moved in found["changes"].items()}
        row = {"generator": name, "kind": kind, "gap": {"AP": found["gap"]["AP"]}, "changes": changes}
        row["perturbation"] = found["perturbation"]
        key = [row["generator"], kind, row["perturbation"]["epsilon"], vars(arrival)]
        rows[:] = [each for each in rows if key_of(each) != key]
        rows.append(row | {"sha256": found["provenance"]["generator"]["sha256"]})
        OUT.parent.mkdir(exist_ok=True)
        OUT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        print(name, kind, row["perturbation"]["epsilon"], arrival, row["gap"]["AP"], flush=True)

    for given in args.generators:
        for arrival in ARRIVALS:
            measure(given, arrival, kind="arrival")
    for given in args.lower:
        for epsilon in LOWER:
            measure(given, epsilon=epsilon, kind="lower")
    for given in args.ladder:
        measure(given, kind="ladder")


def key_of(row: dict[str, Any]) -> list[Any]:
    arrival = {name: row["perturbation"][name] for name in vars(AS_MADE)}
    return [row["generator"], row["kind"], row["perturbation"]["epsilon"], arrival]


if __name__ == "__main__":
    main()
