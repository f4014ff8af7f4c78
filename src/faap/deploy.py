"""Perturbing pictures and videos, as whoever deploys a generator does, and measuring what of that arrives."""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import ExifTags, Image, ImageDraw
from rich.console import Console
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from faap.data import denormalise, normalise
from faap.data.images import Preprocessing, evaluation_transform, read_image
from faap.data.orientation import open_image
from faap.data.problems import Problem, opening, place
from faap.detectors import FrozenDetector
from faap.errors import FaapError
from faap.evaluation.detections import perturb_as_deployed
from faap.files import atomic_write
from faap.perturbation import Generator
from faap.runs import writing
from faap.weights import tensors_sha256

PICTURES = (".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# what a folder of results says of each file in it
LEDGER = "applied.jsonl"
# where images keep their size
OWN_SIZE = Preprocessing(shortest_edge=None, longest_edge=None)
# of a video, the frames that are looked at again as they were written
_LOOKED_AT = 20
# a video is what it is, and no list of other files or addresses
_VIDEO_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,matroska,webm,avi"}
# bytes of EXIF that fit into a JPEG file
_MOST_EXIF = 65_000
# pictures that are drawn side by side: the colour of what is found, and the pixels between them
_COLOUR, _BETWEEN = "#D55E00", 8

Pixels = npt.NDArray[Any]
Picture = TypeVar("Picture", Image.Image, Pixels, Tensor)


def apply(generator: Generator, image: Picture, *, preprocessing: Preprocessing = OWN_SIZE) -> Picture:
    """Perturb an image, for a detector that reads it from there on as it ever did.

    Args:
        generator: with its ε.
        image: Pillow's; an array (H, W, 3) of uint8; or a tensor (3, H, W) or (B, 3, H, W), of uint8 or of floats in
            [0, 1]. Of images that are normalised already, see `Generator.perturb`.
        preprocessing: the detector's (`FrozenDetector.preprocessing`). Where it resizes images, the perturbation is
            made at the size that the detector sees, and brought to the image's by bilinear interpolation, within ε.

    Returns:
        An image of the same kind, size and type; floats are not rounded.

    Raises:
        FaapError: if the image is of another kind.
    """
    if isinstance(image, Image.Image):
        pixels = _planes(np.asarray(image.convert("RGB")))
        return Image.fromarray(_rows(_moved(pixels, perturbation(generator, pixels, preprocessing))))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,):
        pixels = _planes(image)
        return _rows(_moved(pixels, perturbation(generator, pixels, preprocessing)))
    if not (
        isinstance(image, Tensor)
        and (image.dtype == torch.uint8 or image.is_floating_point())
        and image.ndim in (3, 4)
        and image.shape[-3] == 3
    ):
        kind = f"{type(image).__name__} {getattr(image, 'dtype', '')} {tuple(getattr(image, 'shape', ()))}"
        wanted = "a Pillow image, an array (H, W, 3) of uint8, or a tensor ([B, ]3, H, W) of uint8 or floats in [0, 1]"
        raise FaapError(f"the image is {kind}; it should be {wanted}.")
    if image.is_floating_point() and not bool(((image >= 0) & (image <= 1)).all()):
        raise FaapError("the image has values outside of [0, 1]; of normalised ones see generator.perturb.")
    return _moved(image, perturbation(generator, image, preprocessing))


@torch.no_grad()
def perturbation(generator: Generator, pixels: Tensor, preprocessing: Preprocessing = OWN_SIZE) -> Tensor:
    """Return what a generator adds to images ([B, ]3, H, W), uint8 or in [0, 1], at the size (h, w) a detector sees."""
    if pixels.ndim == 4:
        return torch.stack([perturbation(generator, each, preprocessing) for each in pixels])
    seen = _seen(_unit(pixels), preprocessing).to(next(generator.parameters()).device)
    return (denormalise(perturb_as_deployed(generator, normalise(seen)[None]))[0] - seen).to(pixels.device)


def _moved(pixels: Tensor, delta: Tensor) -> Tensor:
    """Add a perturbation, which may be of another size, to images of uint8 or in [0, 1]."""
    values = _unit(pixels)
    if delta.shape != values.shape:
        batch = delta.view(-1, *delta.shape[-3:])
        delta = F.interpolate(batch, values.shape[-2:], mode="bilinear", align_corners=False).view(values.shape)
    moved = (values + delta).clamp(0, 1)
    return (moved.mul(255).round() if pixels.dtype == torch.uint8 else moved).to(pixels.dtype)


def _seen(values: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return an image (3, H, W) in [0, 1] as a detector's preprocessing has it, (3, h, w)."""
    if preprocessing.shortest_edge is None and preprocessing.size is None:
        return values
    image = _rows(values.mul(255).round().to(torch.uint8))
    return _unit(evaluation_transform(image, np.zeros((0, 4)), preprocessing)[0]).to(values.device)


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _planes(image: Pixels) -> Tensor:
    return torch.from_numpy(np.array(image.transpose(2, 0, 1), order="C"))


def _rows(pixels: Tensor) -> Pixels:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def arrived(before: Image.Image, after: Image.Image, delta: Tensor, preprocessing: Preprocessing) -> dict[str, float]:
    """Measure what of a perturbation is there in an image as it was written.

    Args:
        before: RGB, the image that was perturbed.
        after: the same size, as it is read again.
        delta: (3, h, w), what the generator added, at the size that the detector sees.
        preprocessing: the detector's.

    Returns:
        "kept": the share of the perturbation that the detector gets, 1 for all of it: the projection of what changed
        onto it; nan for a perturbation of nothing. "linf_pixels": the largest change of a pixel, of 255. "psnr_db".
    """
    images = [_unit(_planes(np.asarray(image))) for image in (before, after)]
    change = _seen(images[1], preprocessing) - _seen(images[0], preprocessing)
    delta = delta.to(change)
    size, error = float(delta.square().sum()), float((images[1] - images[0]).square().mean())
    kept = float((change * delta).sum()) / size if size else math.nan
    largest = 255 * float((images[1] - images[0]).abs().max())
    return {"kept": kept, "linf_pixels": largest, "psnr_db": -10 * math.log10(error) if error else math.inf}


@dataclass(frozen=True)
class Form:
    """What becomes of files.

    Attributes:
        jpeg: the quality, 1 to 100, of pictures that are written as JPEG, without chroma subsampling; None: as PNG.
        preprocessing: the detector's, see `apply`.
        draw: a detector that shows what it finds before and after, in pictures in the folder `drawn`; None: none.
        score: of detections that are drawn, the least.
    """

    jpeg: int | None = None
    preprocessing: Preprocessing = OWN_SIZE
    draw: FrozenDetector | None = None
    score: float = 0.5


def apply_files(
    generator: Generator,
    inputs: Sequence[str | Path],
    out: str | Path,
    form: Form = Form(),
    *,
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Perturb pictures, folders of them, and videos into a folder; what is there already is not made again.

    EXIF but for the orientation, which is applied, and the colour profile of RGB pictures are kept; transparency is
    laid on white. Videos become H.264 in MP4, and keep their sound. `applied.jsonl` in the folder says of each file
    from what it was made, and with which generator.

    Args:
        generator: with its ε.
        inputs: files, and folders, whose own folders are kept.
        out: the folder for the results.
        form: what becomes of them.
        console: where to show a bar.

    Returns:
        The line of `applied.jsonl` of each file: "source", "file", what `arrived` says of it as it was written, and
        what it was made with.

    Raises:
        FaapError: an input is missing or none, two would have one name, a file of the folder is not ours; or, once all
            others are made, some that could not be read.
    """
    out = Path(out)
    pairs, known = _pairs(inputs, out, ".png" if form.jpeg is None else ".jpg"), _ledger(out)
    for _, name in pairs:
        if (out / name).exists() and str(name) not in known:
            raise FaapError(f"{out / name}: is there, and no result of faap; give another folder with --out.")
    how = {"generator": tensors_sha256(generator.state_dict()), "epsilon": generator.epsilon, "jpeg": form.jpeg}
    how |= {"seen": repr(form.preprocessing), "drawn": form.draw and [form.draw.file_sha256, form.score]}
    made, failed = list[dict[str, Any]](), list[str]()
    bar = Progress(console=console, transient=True, disable=console is None or not console.is_terminal)
    with writing(out), bar:
        out.mkdir(parents=True, exist_ok=True)
        with (out / LEDGER).open("a", encoding="utf-8") as ledger:
            for source, name in bar.track(pairs, description="perturbing"):
                about, before = source.stat(), known.get(str(name), {})
                row = {"source": str(source), "file": str(name), "bytes": about.st_size, "mtime": about.st_mtime_ns}
                row |= how
                if (out / name).is_file() and all(before.get(key) == value for key, value in row.items()):
                    made.append(before)
                    continue
                make = _video if source.suffix.lower() in VIDEOS else _picture
                try:
                    row |= make(generator, source, out, name, form)
                except Problem as problem:
                    failed.append(str(problem))
                    continue
                ledger.write(json.dumps(row) + "\n")
                ledger.flush()
                made.append(row)
    if failed:
        raise FaapError(f"{len(failed)} of {len(pairs)} cannot be read, the others are in {out}: {'; '.join(failed)}")
    return made


def _pairs(inputs: Sequence[str | Path], out: Path, suffix: str) -> list[tuple[Path, Path]]:
    """Return every file to perturb, and what the result is called within `out`."""
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        here = [path]
        if path.is_dir():
            seen = (each for each in sorted(path.rglob("*")) if each.suffix.lower() in PICTURES + VIDEOS)
            here = [each for each in seen if each.is_file() and out.resolve() not in each.resolve().parents]
            if not here:
                raise FaapError(f"{path}: there is no picture or video in this folder.")
        elif not path.is_file():
            raise FaapError(f"{path}: there is no such file or folder.")
        for each in here:
            inside = each.relative_to(path) if path.is_dir() else Path(each.name)
            name = inside.with_suffix(".mp4" if each.suffix.lower() in VIDEOS else suffix)
            other = found.setdefault(name, each)
            if other.resolve() != each.resolve():
                raise FaapError(f"{each} and {other} would both become {out / name}; perturb them into two folders.")
            if (out / name).resolve() == each.resolve():
                raise FaapError(f"{each}: would be replaced by its result; give another folder with --out.")
    return [(source, name) for name, source in found.items()]


def _ledger(out: Path) -> dict[str, dict[str, Any]]:
    """Return the last line about each file; one that was cut short says nothing."""
    rows: dict[str, dict[str, Any]] = {}
    with suppress(OSError):
        for line in (out / LEDGER).read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                rows[str(row["file"])] = row
    return rows


def _picture(generator: Generator, source: Path, out: Path, name: Path, form: Form) -> dict[str, Any]:
    image = read_image(source)
    pixels = _planes(np.asarray(image))
    delta = perturbation(generator, pixels, form.preprocessing)
    options = _kept_with(source) | ({} if form.jpeg is None else {"quality": form.jpeg, "subsampling": 0})
    with atomic_write(out / name) as temporary:
        kind = "PNG" if form.jpeg is None else "JPEG"
        Image.fromarray(_rows(_moved(pixels, delta))).save(temporary, kind, **options)
    again = read_image(out / name)
    if form.draw is not None:
        with atomic_write(out / "drawn" / name.with_suffix(".jpg")) as temporary:
            drawn(form.draw, (image, again), form.score).save(temporary, "JPEG", quality=92)
    return arrived(image, again, delta, form.preprocessing)


def _kept_with(source: Path) -> dict[str, Any]:
    """Return of a picture's file what is not pixels and goes with them."""
    kept: dict[str, Any] = {}
    with open_image(source) as file, suppress(Exception):  # Pillow's parsers raise many kinds of errors
        if file.mode in ("RGB", "RGBA") and (profile := file.info.get("icc_profile")):
            kept["icc_profile"] = profile
        if exif := file.getexif():
            exif.pop(ExifTags.Base.Orientation, None)  # it has been applied
            if len(content := exif.tobytes()) < _MOST_EXIF:
                kept["exif"] = content
    return kept


def drawn(detector: FrozenDetector, images: Sequence[Image.Image], score: float) -> Image.Image:
    """Draw pictures side by side, with what a detector finds in each: boxes, classes, scores."""
    width, height = images[0].size
    whole = Image.new("RGB", (len(images) * width + (len(images) - 1) * _BETWEEN, height), "white")
    for number, image in enumerate(images):
        seen = _seen(_unit(_planes(np.asarray(image))), detector.preprocessing)
        pixels = normalise(seen.to(next(detector.parameters()).device))[None]
        with torch.no_grad():
            out = detector(*detector.adapt(pixels, None))
            (found,) = detector.detections(out, torch.tensor([[height, width]]))
        shown = image.copy()
        pen, line = ImageDraw.Draw(shown), max(1, round(max(width, height) / 300))
        for value, label, box in zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True):
            if value >= score:
                corner, text = (box[0], box[1]), f"{detector.labels[label]} {value:.2f}"
                pen.rectangle((*corner, box[0] + box[2], box[1] + box[3]), outline=_COLOUR, width=line)
                size = max(8, 5 * line)
                pen.rectangle(pen.textbbox(corner, text, font_size=size), fill="white")
                pen.text(corner, text, fill=_COLOUR, font_size=size)
        whole.paste(shown, (number * (width + _BETWEEN), 0))
    return whole


def _video(generator: Generator, source: Path, out: Path, name: Path, form: Form) -> dict[str, Any]:
    try:
        av: Any = import_module("av")
    except ImportError as error:
        raise FaapError(f"{source}: videos take PyAV: pip install 'faap[video]'.") from error
    looked_at: dict[int, tuple[Image.Image, Tensor]] = {}
    with opening(source, place(source), "video"), av.open(str(source), options=_VIDEO_OPTIONS) as file:
        stream, sound = file.streams.video[0], next(iter(file.streams.audio), None)
        every = max(1, (stream.frames or 30 * _LOOKED_AT) // _LOOKED_AT)
        with atomic_write(out / name) as temporary, av.open(str(temporary), "w", format="mp4") as written:
            # of even sides, because most players know halved chroma alone
            odd = stream.width % 2 or stream.height % 2
            made = written.add_stream("libx264", rate=stream.average_rate, options={"crf": "12"})
            made.width, made.height, made.pix_fmt = stream.width, stream.height, "yuv444p" if odd else "yuv420p"
            heard = written.add_stream_from_template(sound) if sound else None
            number = 0
            for packet in file.demux([each for each in (stream, sound) if each]):
                if packet.stream is sound and packet.dts is not None:
                    packet.stream = heard
                    written.mux(packet)
                elif packet.stream is stream:
                    for frame in packet.decode():
                        pixels = _planes(frame.to_ndarray(format="rgb24"))
                        delta = perturbation(generator, pixels, form.preprocessing)
                        if number % every == 0 and len(looked_at) <= _LOOKED_AT:
                            looked_at[number] = Image.fromarray(_rows(pixels)), delta
                        number += 1
                        new = av.VideoFrame.from_ndarray(_rows(_moved(pixels, delta)), format="rgb24")
                        new.pts, new.time_base = frame.pts, frame.time_base
                        written.mux(made.encode(new))
            written.mux(made.encode())
    rows = []
    with av.open(str(out / name)) as file:
        for number, frame in enumerate(file.decode(video=0)):
            if number in looked_at:
                rows.append(arrived(looked_at[number][0], frame.to_image(), looked_at[number][1], form.preprocessing))
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} | {"frames": number + 1}
