"""What metrics.json holds, for reading it back."""

from typing import Any

from faap.evaluation.gaps import GAPS, HEADLINE

_NUMBER = (float, None)
_INTERVAL = ([float, float], None)
_GAP = dict.fromkeys(("baseline", "perturbed", "change", "relative_change", "p_value"), _NUMBER) | {"ci95": _INTERVAL}
_CRITERION = {"value": _NUMBER, "target": _NUMBER, "met": (bool, None), "ci95?": _INTERVAL}

SHAPE: dict[str, Any] = {
    "split": str,
    "images": {str: int},
    "categories_left_out?": {str: [str]},
    "baseline": {str: {str: _NUMBER}},
    "perturbed": {str: {str: _NUMBER}},
    "gap": dict.fromkeys(GAPS, _GAP),
    "success": dict.fromkeys(HEADLINE, _CRITERION),
    "warnings?": [str],
    "perturbation": dict.fromkeys(("epsilon", "linf_normalised", "linf_pixels", "psnr_db", "ssim"), _NUMBER),
    "provenance?": {
        "dataset": str,
        "split_sha256": str,
        "detector": dict.fromkeys(("name", "file_sha256", "tensors_sha256"), str),
        "generator": {"arch": str, "epsilon": float, "sha256": str},
        "versions": {str: str},
        "date": str,
    },
    "detector_sha256": str,
}
