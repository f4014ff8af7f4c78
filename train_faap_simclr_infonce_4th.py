"""The original entry point of infonce_4th: `python train_faap_simclr_infonce_4th.py [any field as --flag]`.

Without `--dataset_root` and `--detr_checkpoint` it uses Promenade, the embedded benchmark.
"""

import sys

from faap import cli

if __name__ == "__main__":
    sys.exit(cli.run(lambda: cli.train(sys.argv[1:], cli.terminal(), prog=sys.argv[0], recipe="infonce_4th")))
