"""A generator, alone or with a detector behind it, as one file for other programs."""

import copy
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import faap
from faap.data.images import MEAN, STD
from faap.detectors import FrozenDetector
from faap.errors import FaapError
from faap.files import atomic_write, reading, refuse_device
from faap.perturbation import Generator
from faap.perturbation.budget import add_within_budget
from faap.perturbation.light import STRIDE
from faap.runs import Run, writing
from faap.weights import tensors_sha256

# what an exported file may differ by, in normalised units, logits or shares of an image
TOLERANCE = 1e-4
INPUT = "pixel_values"
OUTPUTS = ("perturbed", "logits", "boxes")
# (batch, height, width) at which it is held against PyTorch; the first is what is traced
SIZES = ((2, 133, 161), (1, 128, 160), (3, 64, 97), (1, 320, 416))
ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
# stands in every file
_MARK = b"generator_sha256"


class _Whole(nn.Module):
    """A generator, and perhaps a detector, on images of any size; they come without padding.

    The padding that `Light` needs is put on with its mask, so that one graph does for all sizes.
    """

    def __init__(self, generator: Generator, detector: FrozenDetector | None) -> None:
        super().__init__()
        self.generator, self.detector = copy.deepcopy(generator).requires_grad_(False), detector

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        height, width = pixel_values.shape[2:]
        # always some, so that nothing is decided by whether there is any
        more = (0, (width // STRIDE + 1) * STRIDE - width, 0, (height // STRIDE + 1) * STRIDE - height)
        if self.generator.arch == "light":
            mask = F.pad(torch.ones_like(pixel_values[:, 0]), more) > 0
            raw = self.generator(F.pad(pixel_values, more), mask)[..., :height, :width]
        else:
            raw = self.generator(pixel_values)
        # a copy, for what is written into a part of a tensor is taken apart and put together again in other programs
        perturbed = add_within_budget(pixel_values, raw.clone(), self.generator.epsilon)
        if self.detector is None:
            return (perturbed,)
        out = self.detector(*self.detector.adapt(perturbed))
        return perturbed, out.logits, out.boxes


def export(
    generator: Generator,
    path: str | Path,
    *,
    to: str = "onnx",
    detector: FrozenDetector | None = None,
    run: Run | None = None,
) -> dict[str, Any]:
    """Write a generator, alone or with a detector behind it, as one file, and hold the file against PyTorch.

    It takes "pixel_values" (B, 3, H, W), ImageNet-normalised, of any B, H and W (of 16 pixels or more, for "torch"; 17
    with Promenade's detector), without padding, and gives "perturbed", the same normalised; with a detector "logits"
    (B, Q, C') and "boxes" (B, Q, 4), cxcywh in [0, 1], too.

    Args:
        generator: with its ε, on the CPU.
        path: the file.
        to: "onnx", or "torch" for `torch.export.load`.
        detector: on the CPU.
        run: where the generator is from, for its recipe and figures.

    Returns:
        What the file says of itself: as metadata of ONNX, as the extra file "faap.json" of torch's; and
        "largest_difference" from PyTorch.

    Raises:
        FaapError: a library is missing, the detector cannot be exported, or the file does not do what PyTorch does.
    """
    if to not in ENDINGS:
        raise FaapError(f"export to {to!r}: it can be one of {', '.join(ENDINGS)}.")
    if detector is not None and (divisor := getattr(detector, "divisor", 1)) > 1:
        takes = f"takes sides that are multiples of {divisor}, and a file takes images of any size"
        raise FaapError(f"the detector {detector.name} {takes}; export without --with_detector.")
    whole, path = _Whole(generator, detector).eval(), Path(path)
    if path.suffix in {*ENDINGS.values()} - {ENDINGS[to]}:
        raise FaapError(f"{path}: would be of the format {to}, whose files end in {ENDINGS[to]}; give that, or --to.")
    refuse_device(path)
    if path.is_dir() or (path.exists() and _MARK not in path.read_bytes()):
        raise FaapError(f"{path}: is there, and no export of faap; give another file with --output.")
    about = _about(generator, detector, run)
    write = _write_onnx if to == "onnx" else _write_torch
    images = torch.randn(SIZES[0][0], 3, *SIZES[0][1:], generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), _quiet():
        try:
            content = write(whole, images, about)
        except ImportError as error:
            raise FaapError(f"export to {to}: {error}; pip install 'faap[onnx]'.") from error
        except Exception as error:  # of many kinds, by what a detector does that has no counterpart
            name = "the generator" if detector is None else f"the detector {detector.name}"
            said = str(error.__cause__ or error).strip().partition("\n")[0]  # not in which of its steps
            other = "" if detector is None else " Without --with_detector it may."
            raise FaapError(f"{name} cannot be exported to {to}: {said}.{other}") from error
    with writing(path.parent, "--output"), atomic_write(path) as temporary:
        temporary.write_bytes(content)
        with reading(path, "cannot be read again"):
            difference = compare(temporary, whole, to)
        if not difference <= TOLERANCE:
            raise FaapError(f"{path}: differs from PyTorch by {difference:.1e}, and is not kept.")
    return about | {"largest_difference": difference}


def _about(generator: Generator, detector: FrozenDetector | None, run: Run | None) -> dict[str, Any]:
    about: dict[str, Any] = {"faap": faap.__version__, "mean": MEAN, "std": STD, "epsilon": generator.epsilon}
    about |= {"arch": generator.arch, "generator_sha256": tensors_sha256(generator.state_dict())}
    if detector is not None:
        about |= {"detector": plain_name(detector.name), "detector_file_sha256": detector.file_sha256}
        about |= {"labels": detector.labels, "activation": detector.activation}
    if run is not None and run.metrics.is_file() and measured_in(run, generator):
        metrics = run.read_metrics()
        source = metrics["provenance"]
        about |= {"dataset": plain_name(source["dataset"]), "split": metrics["split"], "images": metrics["images"]}
        about["measured_with"] = source["detector"] | {"name": plain_name(source["detector"]["name"])}
        about |= {"gap": metrics["gap"], "changes": metrics.get("changes")}
    return about


def measured_in(run: Run, generator: Generator) -> bool:
    """Whether a run's figures are those of a generator, with its ε."""
    known = run.read_metrics().get("provenance", {}).get("generator", {})
    mine = tensors_sha256(generator.state_dict()), generator.epsilon
    return (known.get("sha256"), known.get("epsilon")) == mine


def plain_name(place: str) -> str:
    """Return what a data set or a detector is called, without the path of a machine."""
    return re.split(r"[\\/]", place.rstrip("\\/"))[-1]


def _write_onnx(whole: _Whole, images: Tensor, about: Mapping[str, Any]) -> bytes:
    for each in ("onnx", "onnxscript", "onnxruntime"):
        import_module(each)
    sizes = {INPUT: {0: "batch", 2: "height", 3: "width"}}
    names: Any = {"input_names": [INPUT], "output_names": list(OUTPUTS if whole.detector else OUTPUTS[:1])}
    program: Any = torch.onnx.export(whole, (images,), dynamo=True, verbose=False, dynamic_shapes=sizes, **names)
    model = program.model_proto
    for each in (*model.graph.node, *model.graph.value_info, *(n for f in model.functions for n in f.node)):
        del each.metadata_props[:]  # where in this machine's files it was traced
    for name, value in about.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    content: bytes = model.SerializeToString()
    return content


def _write_torch(whole: _Whole, images: Tensor, about: Mapping[str, Any]) -> bytes:
    free = torch.export.Dim.AUTO
    program = torch.export.export(whole, (images,), dynamic_shapes={INPUT: {0: free, 2: free, 3: free}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"faap.json": json.dumps(about)})
    return buffer.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own words, which are about themselves, from the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load_exported(path: Path, to: str = "onnx") -> Callable[[Tensor], list[Tensor]]:
    """Return a function of an exported file: images (B, 3, H, W) to the list of its outputs."""
    if to == "torch":
        with path.open("rb") as file:  # of a path it asks for its own ending
            module = torch.export.load(file).module()
        return lambda images: list(module(images))
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # its builds tell Microsoft of their use unless told not to
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(each) for each in session.run(None, {INPUT: images.numpy()})]


@torch.no_grad()
def compare(path: Path, whole: nn.Module, to: str = "onnx", sizes: Sequence[tuple[int, int, int]] = SIZES) -> float:
    """Return by how much an exported file differs from PyTorch at most."""
    exported, largest = load_exported(path, to), torch.zeros(())
    for batch, height, width in sizes:
        images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))
        for mine, theirs in zip(whole(images), exported(images), strict=True):
            largest = torch.maximum(largest, (mine - theirs).abs().max())
    return float(largest)
