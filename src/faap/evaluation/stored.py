"""What metrics.json holds, for reading it back."""

from typing import Any

from faap.evaluation.gaps import GAPS, HEADLINE

_NUMBER = (float, None)
_INTERVAL = ([float, float], None)
_GAP = dict.fromkeys(("baseline", "perturbed", "change", "relative_change", "p_value"), _NUMBER) | {"ci95": _INTERVAL}
_GAP["perturbed_ci95?"] = _INTERVAL
_CRITERION = {"value": _NUMBER, "target": _NUMBER, "met": (bool, None), "ci95?": _INTERVAL}

_DISTANCE = dict.fromkeys(("epsilon", "linf_normalised", "linf_pixels", "psnr_db", "ssim"), _NUMBER)
_DISTANCE |= dict.fromkeys(("jpeg?", "resize?", "shift?"), _NUMBER)
_SOURCE: dict[str, Any] = {"dataset": str, "split_sha256": str, "versions": {str: str}, "date": str}
_SOURCE["detector"] = dict.fromkeys(("name", "file_sha256", "tensors_sha256"), str)
_SOURCE["generator"] = {"arch": str, "epsilon": float, "sha256": str, "parameters?": int}

SHAPE: dict[str, Any] = {"split": str, "images": {str: int}, "categories_left_out?": {str: [str]}, "warnings?": [str]}
SHAPE |= {"baseline": {str: {str: _NUMBER}}, "perturbed": {str: {str: _NUMBER}}, "gap": dict.fromkeys(GAPS, _GAP)}
SHAPE |= {"success": dict.fromkeys(HEADLINE, _CRITERION), "perturbation": _DISTANCE, "provenance?": _SOURCE}
SHAPE |= {"detector_sha256": str, "changes?": {str: {str: _GAP}}, "training?": {"images": int, "seconds": float}}
SHAPE["beside?"] = {str: dict(SHAPE)}
