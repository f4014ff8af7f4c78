"""The original entry point of infonce_4th: `python train_faap_simclr_infonce_4th.py [any field as --flag]`.

Without `--dataset_root` and `--detr_checkpoint` it uses Promenade, the embedded benchmark.
"""

import sys

from faap import cli

if __name__ == "__main__":
    sys.exit(cli.run("train", ["infonce_4th", *sys.argv[1:]], prog=sys.argv[0]))
