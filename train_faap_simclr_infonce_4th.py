"""The original entry point of infonce_4th: `python train_faap_simclr_infonce_4th.py [any field as --flag]`.

Without `--dataset_root` and `--detr_checkpoint` it uses Promenade, the embedded benchmark.
"""

import sys

from faap import cli

NOTE = (
    "The published defaults are too short to judge by on Promenade: with the rate and images of equal this objective "
    "closes most of the gap and costs men .02 AP, and the detection loss alone (faap train equal) closes all of it and "
    "costs nobody: docs/results.md."
)

if __name__ == "__main__":
    if not any(word.startswith(("--dataset", "--detr", "-h", "--help", "--quiet")) for word in sys.argv[1:]):
        # of which standard output gets the log alone
        log = any(word.startswith(("--log_format", "--log-format")) for word in sys.argv[1:])
        print(NOTE, file=sys.stderr if log else sys.stdout, flush=True)
    sys.exit(cli.run("train", ["infonce_4th", *sys.argv[1:]], prog=sys.argv[0]))
