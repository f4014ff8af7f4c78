"""Perturbing pictures and videos, as whoever deploys a generator does, and measuring what of that arrives."""

import errno
import json
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from mimetypes import MimeTypes
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

from faap.conform import Between, conform
from faap.data import denormalise, normalise
from faap.data.images import Preprocessing, evaluation_transform, is_coloured, odd, planes, read_image, to_rgb
from faap.data.orientation import open_image
from faap.data.problems import opening, place
from faap.detectors import FrozenDetector
from faap.detectors.base import RawDetections, unchanged
from faap.errors import FaapError
from faap.evaluation.detections import perturb_as_deployed
from faap.files import atomic_write, file_sha256, read_text, refuse_odd
from faap.perturbation import Generator
from faap.runs import writing
from faap.weights import a_weight, tensors_sha256

_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
PICTURES = (".avif", ".bmp", ".gif", ".jp2", *_JPEG, ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
# what a folder of results says of each file in it
LEDGER = "applied.jsonl"
_LINE = {"source": str, "file": str, "sha256": {str: str}, "linf_pixels": float, "notes?": [str]}
_LINE |= dict.fromkeys(("kept", "psnr_db"), (float, None))
# where images keep their size
OWN_SIZE = Preprocessing(shortest_edge=None, longest_edge=None)
# of a video, the frames that are looked at again as they were written
_LOOKED_AT = 20
# a video is what it is, and no list of other files or addresses
_VIDEO_OPTIONS = {"protocol_whitelist": "file", "format_whitelist": "mov,mp4,matroska,webm,avi"}
# bytes of EXIF that fit into a JPEG file
_MOST_EXIF = 65_000
# tags of a TIFF that are about the picture and not about how it lies in the file
_DESCRIBES = (270, 271, 272, 305, 306, 315, 33432)
# sound that MP4 holds as it is
_SOUNDS = ("aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "flac")
# rates and channels of sound that AAC holds
_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
# colour spaces, as FFmpeg numbers them, that it converts to
_SPACES = (1, 4, 5, 6, 7, 9)
# what a generator adds at most that adds nothing, in shares of a pixel's range
_ROUNDING = 1e-5
# the folder of drawings in that of the results
_DRAWN = "drawn"
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
        An image of the same kind, size and type, Pillow's in RGB; floats are not rounded.

    Raises:
        FaapError: if the image is of another kind, or empty.
    """
    if isinstance(image, Image.Image) and all(image.size):
        try:
            pixels = np.asarray(to_rgb(image))
        except (OSError, ValueError) as error:
            raise FaapError(f"the image, of Pillow's mode {image.mode}, cannot be read: {error}.") from error
        return Image.fromarray(apply(generator, pixels, preprocessing=preprocessing))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] == (3,) and 0 not in image.shape:
        return _rows(apply(generator, planes(image), preprocessing=preprocessing))
    if not (isinstance(image, Tensor) and is_coloured(image, torch.uint8) and image.ndim < 5 and image.numel()):
        wanted = "a Pillow image, an array (H, W, 3) of uint8, or a tensor ([B, ]3, H, W) of uint8 or floats in [0, 1]"
        raise odd(image, wanted)
    if image.is_floating_point() and not bool(((image >= 0) & (image <= 1)).all()):
        raise FaapError("the image has values outside of [0, 1]; of normalised ones see generator.perturb.")
    return _moved(image, perturbation(generator, image, preprocessing))


@torch.no_grad()
def perturbation(generator: Generator, pixels: Tensor, preprocessing: Preprocessing = OWN_SIZE) -> Tensor:
    """Return what a generator adds to images ([B, ]3, H, W), uint8 or in [0, 1], at the size (h, w) a detector sees."""
    if pixels.ndim == 4:
        return torch.stack([perturbation(generator, each, preprocessing) for each in pixels])
    seen = _seen(_unit(pixels), preprocessing).to(a_weight(generator))
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
        onto it; nan for a perturbation of nothing but rounding. "linf_pixels": the largest change of a pixel, of 255.
        "psnr_db".
    """
    images = [_unit(planes(np.asarray(image))) for image in (before, after)]
    change = _seen(images[1], preprocessing) - _seen(images[0], preprocessing)
    delta = delta.to(change)
    size, error = float(delta.square().sum()), float((images[1] - images[0]).square().mean())
    kept = float((change * delta).sum()) / size if float(delta.abs().max()) > _ROUNDING else math.nan
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

    Raises:
        FaapError: if quality or score is out of range.
    """

    jpeg: int | None = None
    preprocessing: Preprocessing = OWN_SIZE
    draw: FrozenDetector | None = None
    score: float = 0.5

    def __post_init__(self) -> None:
        conform(self.jpeg, (Between(1, 100, 1), None), "jpeg")
        conform(self.score, Between(0, 1), "score")


class NotAllMade(FaapError):
    """Some files could not be made; `made` are the lines of the others."""

    def __init__(self, said: str, made: list[dict[str, Any]]) -> None:
        super().__init__(said)
        self.made = made


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
    laid on white. Of videos the main picture track becomes H.264 in MP4, with sound and what subtitles MP4 can hold;
    they are not drawn. `applied.jsonl` in the folder says of each file from what it was made, with which generator,
    what arrives, and what is lost.

    Args:
        generator: with its ε.
        inputs: files, and folders, whose own folders are kept.
        out: the folder for the results.
        form: what becomes of them.
        console: where to show a bar.

    Returns:
        The line of `applied.jsonl` of each file: "source", "file", what `arrived` says of it as it was written, None
        where that is not finite, what it was made with, and "notes": of a video, which tracks are not in the result,
        and that it is cut off or damaged.

    Raises:
        FaapError: the detector has changed; an input is missing or none, two would have one name, a file of the folder
            is not what faap left there; or, once all others are made, some could not be (`NotAllMade`).
    """
    out = Path(out)
    how = {"generator": tensors_sha256(generator.state_dict()), "epsilon": generator.epsilon, "jpeg": form.jpeg}
    how |= {"seen": repr(form.preprocessing), "drawn": form.draw and [form.draw.file_sha256, form.score]}
    made, failed = list[dict[str, Any]](), list[str]()
    bar = Progress(console=console, transient=True, disable=console is None or not console.is_terminal)
    with writing(out, "--out"), bar, unchanged(form.draw) if form.draw else nullcontext():
        ledger = _Ledger(out)
        pairs = _pairs(inputs, ledger, form)
        for source, name in pairs:
            ledger.check(source, name)
        out.mkdir(parents=True, exist_ok=True)
        for source, name in bar.track(pairs, description="perturbing"):
            try:
                refuse_odd(source)
                about = source.stat()
                row: dict[str, Any] = {"source": str(source.resolve()), "file": str(name)} | how
                row |= {"bytes": about.st_size, "mtime": about.st_mtime_ns}
                make = _video if source.suffix.lower() in VIDEOS else _picture
                made.append(ledger.made(row) or make(generator, source, out, name, form, partial(ledger.add, row)))
            except (OSError, ValueError) as error:
                # where a video is written, what goes wrong is told of its source
                code = getattr(error.__cause__ or error, "errno", 0)
                if code in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                    raise OSError(code, os.strerror(code)) from error
                failed.append(str(error) if isinstance(error, FaapError) else f"{source}: {error}")
    if failed:
        others = f", the others are in {out}" if made else ""
        raise NotAllMade(f"{len(failed)} of {len(pairs)} cannot be made{others}: {'; '.join(failed)}", made)
    return made


def _pairs(inputs: Sequence[str | Path], ledger: "_Ledger", form: Form) -> list[tuple[Path, Path]]:
    """Return every file to perturb, and what the result is called within the folder of results."""
    found: dict[Path, Path] = {}
    out = ledger.out
    for path in map(Path, inputs):
        if not path.exists():
            raise FaapError(f"{path}: there is no such file or folder.")
        for each in _inside(path, ledger) if path.is_dir() else [path]:
            inside = each.relative_to(path if path.is_dir() else path.parent)
            name = inside.with_suffix(".mp4" if each.suffix.lower() in VIDEOS else ".jpg" if form.jpeg else ".png")
            other = found.setdefault(name, each)
            if other.resolve() != each.resolve():
                raise FaapError(f"{each} and {other} would both become {out / name}; perturb them into two folders.")
            if (out / name).resolve() == each.resolve():
                raise FaapError(f"{each}: would be replaced by its result; give another folder with --out.")
            if form.draw and name.parts[0] == _DRAWN:
                raise FaapError(
                    f"{each}: its result would lie among the drawings; give the folder {path / _DRAWN} alone."
                )
    return [(source, name) for name, source in found.items()]


def _inside(folder: Path, ledger: "_Ledger") -> list[Path]:
    """Return the pictures and videos of a folder; results, of this command or an earlier one, are none."""
    out = ledger.out.resolve()
    results = {(out / file).resolve() for rows in ledger.rows.values() for row in rows for file in row["sha256"]}
    ours = {each.parent.resolve() for each in folder.rglob(LEDGER)} | {out} - {*folder.resolve().parents}
    # also links that lead nowhere, which are named when they cannot be made; what macOS keeps beside a file is none
    files = [each for each in sorted(folder.rglob("*")) if not (each.is_dir() or each.name.startswith("._"))]
    files = [each for each in files if each.resolve() not in results and not ours & {*each.resolve().parents}]
    known = [each for each in files if each.suffix.lower() in PICTURES + VIDEOS]
    rest = [each for each in files if each.suffix.lower() not in PICTURES + VIDEOS and each.name[0] != "."]
    # what Python alone, on any machine, knows as something else is none; a camera's own format is known to few
    kind = MimeTypes().guess_type
    if left := [each for each in rest if (kind(each.name)[0] or "image/").startswith(("image/", "video/"))]:
        said = f"{', '.join(str(each.relative_to(folder)) for each in left[:3])} ({len(left)} in all)"
        warnings.warn(f"{folder}: of a format that is not read, and left out: {said}.", stacklevel=4)
    if not known:
        raise FaapError(f"{folder}: there is no picture or video in this folder, but perhaps for results of faap.")
    return known


class _Ledger:
    """What a folder's `applied.jsonl` says of its files; a line is there before its file is, and says what is in it."""

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / LEDGER
        self.rows: dict[str, list[dict[str, Any]]] = {}
        text = read_text(self.path) if self.path.exists() else ""
        for line in text.splitlines():
            with suppress(ValueError, RecursionError):  # one that was cut short, or is not ours, says nothing
                conform(row := json.loads(line), _LINE, "")
                self.rows.setdefault(row["file"], []).append(row)
        if text.strip() and not self.rows:
            raise FaapError(f"{self.path}: is there, and not faap's; give another folder with --out.")
        if text and not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def check(self, source: Path, name: Path) -> None:
        """Raise if a result would take the place of what is not the result of the same source, as it was left."""
        rows, result = self.rows.get(str(name), []), self.out / name
        for file in (name, Path(_DRAWN, name.with_suffix(".jpg"))):
            known = {row["sha256"].get(str(file)) for row in rows}
            if os.path.lexists(self.out / file) and file_sha256(self.out / file) not in known:
                raise FaapError(f"{self.out / file}: is not what faap left there; move it, or give another --out.")
        if rows and result.exists() and rows[-1]["source"] != str(source.resolve()):
            raise FaapError(f"{result}: is the result of {rows[-1]['source']}; give another folder with --out.")

    def made(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the line of a file if all that it says of is there and was made as is wanted."""
        row = next(reversed(self.rows.get(wanted["file"], [])), None)
        if row is None or any(row.get(key) != value for key, value in wanted.items()):
            return None
        there = all((self.out / f).is_file() and file_sha256(self.out / f) == sha for f, sha in row["sha256"].items())
        return row if there else None

    def add(
        self, row: Mapping[str, Any], found: Mapping[str, float], written: Mapping[Path, Path], notes: Sequence[str]
    ) -> dict[str, Any]:
        """Record a file, and those with it: their places, and where they lie until they take them; and what is lost."""
        whole = {**row, **{key: value if math.isfinite(value) else None for key, value in found.items()}}
        whole |= {"sha256": {str(name): file_sha256(path) for name, path in written.items()}, "notes": [*notes]}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(whole) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.setdefault(whole["file"], []).append(whole)
        return whole


Add = Callable[[Mapping[str, float], Mapping[Path, Path], Sequence[str]], dict[str, Any]]


def _picture(generator: Generator, source: Path, out: Path, name: Path, form: Form, add: Add) -> dict[str, Any]:
    image, options = read_image(source), _kept_with(source, form.jpeg is not None)
    pixels = planes(np.asarray(image))
    delta = perturbation(generator, pixels, form.preprocessing)
    options |= {} if form.jpeg is None else {"quality": form.jpeg, "subsampling": 0}
    with ExitStack() as until:
        written = {name: until.enter_context(atomic_write(out / name))}
        Image.fromarray(_rows(_moved(pixels, delta))).save(written[name], "JPEG" if form.jpeg else "PNG", **options)
        again = read_image(written[name])
        if form.draw is not None:
            place = Path(_DRAWN, name.with_suffix(".jpg"))
            written[place] = until.enter_context(atomic_write(out / place))
            drawn(form.draw, (image, again), form.score).save(written[place], "JPEG", quality=92)
        return add(arrived(image, again, delta, form.preprocessing), written, ())


def _kept_with(source: Path, jpeg: bool) -> dict[str, Any]:
    """Return of a picture's file what is not pixels and goes with them.

    Raises:
        Problem: it holds several pictures.
    """
    kept: dict[str, Any] = {}
    with opening(source, place(source), "image"), open_image(source) as file:
        # of MPO, which phones write, the first is the photograph
        if (count := getattr(file, "n_frames", 1)) > 1 and file.format != "MPO":
            raise place(source)("bad_image", f"holds {count} pictures, of which one file would keep the first")
        profile = file.info.get("icc_profile")
        if isinstance(profile, bytes) and profile[16:20] == b"RGB ":  # which is what a result is
            kept["icc_profile"] = profile
        with suppress(Exception):  # Pillow's parsers raise many kinds of errors
            exif = file.getexif()
            exif.pop(ExifTags.Base.Orientation, None)  # it has been applied
            for tag in [tag for tag in exif if file.format == "TIFF" and tag not in _DESCRIBES]:
                del exif[tag]  # how the pixels lay in the file
            if exif and len(content := exif.tobytes()) < (_MOST_EXIF if jpeg else math.inf):
                kept["exif"] = content
    return kept


@torch.no_grad()
def found_in(detector: FrozenDetector, image: Image.Image) -> RawDetections:
    """Return what a detector finds in a picture, RGB, that comes to it as a file does."""
    seen = _seen(_unit(planes(np.asarray(image))), detector.preprocessing)
    out = detector(*detector.adapt(normalise(seen.to(a_weight(detector).device))[None], None))
    return detector.detections(out, torch.tensor([image.size[::-1]]))[0]


def drawn(detector: FrozenDetector, images: Sequence[Image.Image], score: float) -> Image.Image:
    """Draw pictures side by side, with what a detector finds in each: boxes, classes, scores."""
    width, height = images[0].size
    whole = Image.new("RGB", (len(images) * width + (len(images) - 1) * _BETWEEN, height), "white")
    for number, image in enumerate(images):
        found, shown = found_in(detector, image), image.copy()
        pen, line = ImageDraw.Draw(shown), max(1, round(max(width, height) / 300))
        for value, label, box in zip(found.scores.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True):
            if value >= score:
                corner, text = (box[0], box[1]), f"{detector.labels.get(label, label)} {value:.2f}"
                pen.rectangle((*corner, box[0] + box[2], box[1] + box[3]), outline=_COLOUR, width=line)
                size = max(8, 5 * line)
                pen.rectangle(pen.textbbox(corner, text, font_size=size), fill="white")
                pen.text(corner, text, fill=_COLOUR, font_size=size)
        whole.paste(shown, (number * (width + _BETWEEN), 0))
    return whole


def _video(generator: Generator, source: Path, out: Path, name: Path, form: Form, add: Add) -> dict[str, Any]:
    try:
        av: Any = import_module("av")
    except ImportError as error:
        raise FaapError(f"{source}: videos take PyAV: pip install 'faap[video]'.") from error
    looked_at: dict[int, Pixels] = {}
    with atomic_write(out / name) as temporary:
        # "file:", or a name with a colon would be an address
        with opening(source, place(source), "video"), av.open(f"file:{source}", options=_VIDEO_OPTIONS) as file:
            if not file.streams.video:
                raise place(source)("bad_video", "has no pictures")
            with av.open(f"file:{temporary}", "w", format="mp4") as written:
                change = partial(apply, generator, preprocessing=form.preprocessing)
                number, notes = _rewrite(av, file, written, change, looked_at)
        rows = []
        with av.open(f"file:{temporary}") as file:
            for place_of, frame in enumerate(file.decode(video=0)):
                if (pixels := looked_at.pop(place_of, None)) is not None:
                    delta = perturbation(generator, planes(pixels), form.preprocessing)
                    rows.append(arrived(Image.fromarray(pixels), frame.to_image(), delta, form.preprocessing))
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        found = means | {"linf_pixels": max(row["linf_pixels"] for row in rows), "frames": number}
        return add(found | {"frames_measured": len(rows)}, {name: temporary}, notes)


def _tracks(file: Any, written: Any) -> tuple[Any, Any, dict[int, Any], dict[int, Any], list[str]]:
    """Return a video's main picture track, its new one, those of others by index, copied or encoded, what is lost."""
    stream, copied, encoded = file.streams.best("video"), dict[int, Any](), dict[int, Any]()
    lost, notes = list[str](), list[str]()
    made = written.add_stream("libx264", rate=stream.average_rate, options={"crf": "12"})
    for each in file.streams:
        name = each.codec_context.name if each.codec_context else ""  # FFmpeg does not know it
        with suppress(ValueError):  # MP4 has no place for it
            if (name and each.type == "subtitle") or (each.type == "audio" and name in _SOUNDS):
                copied[each.index] = written.add_stream_from_template(each)
            elif name and each.type == "audio":
                sound = each.codec_context
                rate = min((rate for rate in _RATES if rate >= sound.sample_rate), default=_RATES[-1])
                layout = _LAYOUTS.get(sound.channels, "stereo")
                encoded[each.index] = written.add_stream("aac", rate=rate, layout=layout)
                if sound.channels not in _LAYOUTS:
                    notes.append(f"sound of {sound.channels} channels is stereo now")
        if (new := copied.get(each.index) or encoded.get(each.index)) is not None:
            new.metadata["language"] = each.language or "und"
        elif each.index != stream.index:
            lost.append(f"{each.type} {name}".strip())
    # VP9 has its alpha beside the pictures
    if stream.metadata.get("alpha_mode") == "1" or any(each.is_alpha for each in stream.format.components):
        lost.append("transparency")
    return stream, made, copied, encoded, notes + ([f"not kept: {', '.join(lost)}"] if lost else [])


@contextmanager
def _complaints(av: Any) -> Iterator[list[Any]]:
    """Collect what FFmpeg calls an error and goes on after."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # or the same complaint about the next file is none
    try:
        with av.logging.Capture(False) as said:
            yield said
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skips)


def _upright(frame: Any, width: int, height: int) -> Pixels:
    """Return a picture of a video, in a size, as it is to be seen: mirrored, turned, as a matrix beside it says."""
    image: Pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
        (a, b, _), (c, d, _), _ = np.frombuffer(matrix, np.int32).reshape(3, 3).astype(float)
        image = image[::-1] if a * d < b * c else image
    return np.rot90(image, round(frame.rotation / 90))


def _rewrite(
    av: Any, file: Any, written: Any, change: Callable[[Pixels], Pixels], looked_at: dict[int, Pixels]
) -> tuple[int, list[str]]:
    """Write a video anew with its pictures changed, upright, at their times; return their number, and what is lost.

    Some that are spread over it are left in `looked_at` as they were before.
    """
    stream, made, copied, encoded, notes = _tracks(file, written)
    waiting, damage = list[Any](), list[str]()  # the file is begun when the pictures' size is known
    number, last, sizes = 0, -1, dict[tuple[int, int], bool]()
    expected = stream.frames or int((file.duration or 0) / av.time_base * float(stream.average_rate or 0))
    every = max(1, expected // _LOOKED_AT)
    step = round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 1
    with _complaints(av) as said:
        for packet in file.demux([stream, *(file.streams[index] for index in (*copied, *encoded))]):
            if packet.is_corrupt:
                damage.append("a part is incomplete")
                continue
            if (new := copied.get(packet.stream.index)) is not None:
                if packet.dts is not None:
                    packet.stream = new
                    waiting.append(packet)
                continue
            try:
                frames = packet.decode()
            except av.error.InvalidDataError as error:
                damage.append(error.strerror or "a part cannot be read")
                continue
            for frame in frames:
                if (new := encoded.get(packet.stream.index)) is not None:
                    waiting += new.encode(frame)
                    continue
                sizes[frame.width, frame.height] = True
                image = np.ascontiguousarray(_upright(frame, *next(iter(sizes))))
                if not number:
                    made.height, made.width = image.shape[:2]
                    # of even sides, because most players know halved chroma alone
                    made.pix_fmt = "yuv444p" if made.width % 2 or made.height % 2 else "yuv420p"
                    made.codec_context.time_base = stream.time_base
                    before, after = stream.codec_context, made.codec_context
                    after.color_primaries, after.color_trc = before.color_primaries, before.color_trc
                    space, after.color_range = int(frame.colorspace), 2 if int(frame.color_range) == 2 else 1
                    after.colorspace = space or 5  # RGB has none
                    colours = {"dst_colorspace": space if space in _SPACES else 5, "dst_color_range": after.color_range}
                    if shape := stream.sample_aspect_ratio:  # of a pixel
                        after.sample_aspect_ratio = 1 / shape if round(frame.rotation / 90) % 2 else shape
                if number % every == 0 and number < every * _LOOKED_AT:
                    looked_at[number] = image
                frame_out = av.VideoFrame.from_ndarray(change(image), format="rgb24")
                frame_out = frame_out.reformat(format=made.pix_fmt, **colours)
                last = frame.pts if frame.pts is not None and frame.pts > last else last + max(1, step)
                frame_out.pts, frame_out.time_base = last, stream.time_base
                waiting += made.encode(frame_out)
                number += 1
            if number:
                written.mux(waiting)
                waiting.clear()
        damage += [text.strip() for _, _, text in said]
    if not number:
        raise ValueError("no picture of it can be read")
    for new in (made, *encoded.values()):
        written.mux(new.encode())
    if len(sizes) > 1:
        notes.append(f"pictures of {len(sizes)} sizes have the first one's now")
    if damage:
        end = float((last + step) * stream.time_base)
        notes.append(f"cut off or damaged ({damage[0]}): what can be read of its first {end:.1f} seconds is made")
    return number, notes
