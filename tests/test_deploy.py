"""Perturbed pictures and videos: what is in them, what is kept with them, and that nothing is lost or replaced."""

import errno
import json
import math
import os
import re
import shutil
import struct
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, ImageDraw
from transformers import AutoImageProcessor, AutoModelForObjectDetection

import faap
from faap import cli, deploy
from faap.data import denormalise, normalise
from faap.data.images import STD, Preprocessing
from faap.deploy import Form, NotAllMade, apply, apply_files, arrived
from faap.errors import FaapError
from faap.perturbation import Generator, build_generator, save_generator

LARGER = Preprocessing(shortest_edge=64, longest_edge=None)


@pytest.fixture(scope="module")
def generator() -> Generator:
    """Moves most pixels by much of ε."""
    torch.manual_seed(0)
    generator = build_generator("light", 0.1)
    with torch.no_grad():
        generator.out.weight.mul_(300)
    return generator.eval()


def picture(width: int = 60, height: int = 44, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(30, 220, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def by_hand(generator: Generator, pixels: torch.Tensor) -> torch.Tensor:
    """An image (3, H, W) in [0, 1], perturbed."""
    with torch.no_grad():
        return denormalise(generator.perturb(normalise(pixels[None])))[0].clamp(0, 1)


def test_every_kind_of_image_is_perturbed_alike_and_stays_what_it_is(generator: Generator) -> None:
    image = picture()
    array = np.asarray(image)
    planes = torch.from_numpy(array.transpose(2, 0, 1).copy())
    wanted = by_hand(generator, planes / 255)
    assert (wanted - planes / 255).abs().max() > 0.01
    moved = apply(generator, planes / 255)
    assert moved.dtype == torch.float32
    assert torch.allclose(moved, wanted, atol=1e-6)
    levels = wanted.mul(255).round().to(torch.uint8)
    assert torch.equal(apply(generator, planes), levels)
    both = apply(generator, torch.stack([planes, planes.flip(2)]))
    assert both.shape == (2, 3, 44, 60)
    assert torch.equal(both[0], levels)
    assert np.array_equal(apply(generator, array), levels.permute(1, 2, 0))
    moved_image = apply(generator, image)
    assert isinstance(moved_image, Image.Image)
    assert np.array_equal(moved_image, levels.permute(1, 2, 0))
    grey = apply(generator, image.convert("L"))
    assert grey.mode == "RGB"
    wide = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    assert np.array_equal(apply(generator, wide), grey)  # and not clipped
    clear = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    assert np.array_equal(apply(generator, clear), apply(generator, Image.new("RGB", (32, 32), "white")))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, None])
def test_a_generator_of_another_precision_or_without_weights_is_applied(kind: torch.dtype | None) -> None:
    class Fixed(Generator):
        arch, WIDTHS = "fixed", (8, 8, 8)

        def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> torch.Tensor:
            return torch.full((1, 3, 1, 1), 9.0)

    array = np.full((20, 24, 3), 128, np.uint8)
    generator = build_generator().eval().to(kind) if kind else Fixed(0.1)
    moved = apply(generator, array).astype(int) - array
    assert np.abs(moved).max() <= 6 + (kind == torch.bfloat16)
    assert moved.any() or kind


@pytest.mark.parametrize("wrong", [{"jpeg": 0}, {"jpeg": 101}, {"score": math.nan}, {"score": 2.0}], ids=str)
def test_what_no_file_can_be_written_with_is_said(wrong: dict[str, Any]) -> None:
    with pytest.raises(FaapError, match=next(iter(wrong))):
        Form(**wrong)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("a.jpg", "the image is str"),
        (np.zeros((4, 4, 3), np.float32), "the image is ndarray float32"),
        (np.zeros((0, 4, 3), np.uint8), "the image is ndarray uint8"),
        (np.zeros((4, 0, 3), np.uint8), r"the image is ndarray uint8 \(4, 0, 3\)"),
        (np.zeros((4, 4), np.uint8), r"the image is ndarray uint8 \(4, 4\)"),
        (Image.new("RGB", (0, 5)), r"the image is Image  \(0, 5\)"),
        (Image.new("F", (4, 4)), "the image, of Pillow's mode F, cannot be read: its pixels are floating-point"),
        (Image.new("La", (4, 4)), "the image, of Pillow's mode La, cannot be read: "),
        (torch.zeros(4, 4), r"the image is Tensor torch.float32 \(4, 4\)"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "the image is Tensor torch.int64"),
        (torch.full((3, 4, 4), 2.0), "generator.perturb"),
        (torch.full((3, 4, 4), math.nan), "generator.perturb"),
    ],
    ids=[
        "text",
        "floats",
        "nothing",
        "no width",
        "flat",
        "no picture",
        "pillow's floats",
        "premultiplied",
        "no channels",
        "whole numbers",
        "normalised",
        "nan",
    ],
)
def test_what_is_no_image_is_said(generator: Generator, image: Any, said: str) -> None:
    with pytest.raises(FaapError, match=said):
        apply(generator, image)


def linear(values: np.ndarray, size: int) -> np.ndarray:
    """Interpolate the rows of (n, m) to (size, m), pixel centres at halves, the ends continued."""
    places = (np.arange(size) + 0.5) * len(values) / size - 0.5
    return np.stack([np.interp(places, np.arange(len(values)), column) for column in values.T], 1)


def test_where_a_detector_resizes_the_perturbation_is_made_at_its_size_and_stays_within_the_bound(
    generator: Generator,
) -> None:
    image = picture()
    seen = np.asarray(image.resize((87, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    resized = torch.from_numpy(seen.copy()) / 255
    delta = (by_hand(generator, resized) - resized).numpy()
    brought = np.stack([linear(linear(each, 44).T, 60).T for each in delta])
    wanted = (np.asarray(image).transpose(2, 0, 1) / 255 + brought).clip(0, 1)
    moved = np.asarray(apply(generator, image, preprocessing=LARGER)).transpose(2, 0, 1)
    assert np.abs(moved - 255 * wanted).max() <= 0.5 + 1e-3
    bound = 255 * 0.1 * np.array(STD)[:, None, None] + 0.5
    assert (np.abs(moved - np.asarray(image).transpose(2, 0, 1).astype(float)) <= bound + 1e-3).all()


def test_what_arrives_is_measured_against_what_was_added() -> None:
    before = Image.fromarray(np.full((20, 30, 3), 100, np.uint8))
    delta = torch.zeros(3, 20, 30)
    delta[0, :10], delta[1, :, :15] = 4 / 255, -2 / 255
    whole = np.asarray(before) + (255 * delta).round().permute(1, 2, 0).numpy().astype(np.int16)
    own = deploy.OWN_SIZE
    found = arrived(before, Image.fromarray(whole.astype(np.uint8)), delta, own)
    assert found["kept"] == pytest.approx(1, abs=1e-5)
    assert found["linf_pixels"] == pytest.approx(4, abs=1e-4)
    error = ((whole - 100) ** 2).mean() / 255**2
    assert found["psnr_db"] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    half = Image.fromarray(((whole + 100) // 2).astype(np.uint8))
    assert arrived(before, half, delta, own)["kept"] == pytest.approx(0.5, abs=1e-5)
    assert arrived(before, before, delta, own) == {"kept": 0, "linf_pixels": 0, "psnr_db": math.inf}
    for nothing in (0 * delta, delta.sign() * 1e-7):  # the latter is what rounding leaves of ε = 0
        assert math.isnan(arrived(before, half, nothing, own)["kept"])
    assert arrived(before, before, delta / 100, own)["kept"] == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of several kinds, in a folder with a folder."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Artist] = "somebody"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture().save(folder / "turned.jpg", exif=exif, icc_profile=profile, quality=95)
    picture(seed=1).save(folder / "more" / "plain.png")
    inks = profile[:16] + b"CMYK" + profile[20:]
    picture(seed=2).convert("CMYK").save(folder / "more" / "print.tif", icc_profile=inks, tiffinfo={315: "a printer"})
    (folder / "notes.txt").write_text("no picture")
    return folder


def listed(out: Path) -> set[str]:
    return {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}


def test_a_folder_is_written_with_what_belongs_to_its_pictures(
    generator: Generator, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = apply_files(generator, [folder], out)
    assert listed(out) == {"turned.png", "more/plain.png", "more/print.png", "applied.jsonl"}
    assert [json.loads(line) for line in (out / "applied.jsonl").read_text().splitlines()] == made
    assert all(0.9 < row["kept"] < 1.2 and 0 < row["linf_pixels"] <= 7 and row["psnr_db"] > 30 for row in made)
    with Image.open(out / "turned.png") as turned, Image.open(folder / "turned.jpg") as source:
        assert turned.size == (44, 60)  # the way up that it is meant to be seen
        assert dict(turned.getexif()) == {ExifTags.Base.Artist: "somebody"}
        assert turned.info["icc_profile"] == source.info["icc_profile"]
        upright = source.transpose(Image.Transpose.ROTATE_270)
        assert np.array_equal(turned, apply(generator, upright))
    with Image.open(out / "more" / "print.png") as printed:
        assert "icc_profile" not in printed.info  # it was of other colours
        assert dict(printed.getexif()) == {ExifTags.Base.Artist: "a printer"}  # and not how the TIFF was laid out
    jpeg = apply_files(generator, [folder / "turned.jpg"], tmp_path / "jpeg", Form(jpeg=90))
    with Image.open(tmp_path / "jpeg" / "turned.jpg") as turned:
        assert turned.format == "JPEG"
        assert dict(turned.getexif()) == {ExifTags.Base.Artist: "somebody"}
        assert turned.info["icc_profile"]
    rough = apply_files(generator, [folder / "turned.jpg"], tmp_path / "rough", Form(jpeg=20))
    assert rough[0]["kept"] < jpeg[0]["kept"] < made[-1]["kept"]


def test_what_is_made_is_not_made_again_and_what_changed_is(
    generator: Generator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real, seen = folder / "perturbed", deploy._picture, list[str]()

    def watched(*rest: Any) -> Any:
        seen.append(str(rest[3]))
        return real(*rest)

    monkeypatch.setattr(deploy, "_picture", watched)
    monkeypatch.chdir(folder)
    made = apply_files(generator, [folder], out)
    assert sorted(seen) == ["more/plain.png", "more/print.png", "turned.png"]
    seen.clear()
    assert apply_files(generator, [folder], out) == made  # nor are results taken for pictures
    assert apply_files(generator, ["."], "perturbed") == made
    assert seen == []
    (out / "turned.png").unlink()
    (folder / "more" / "plain.png").write_bytes((folder / "turned.jpg").read_bytes())
    assert len(apply_files(generator, [folder], out)) == 3
    assert sorted(seen) == ["more/plain.png", "turned.png"]
    with (out / "applied.jsonl").open("a") as ledger:
        ledger.write('{"file": "turned.png", "sour')  # a process that was killed
    (out / "turned.png").unlink()
    for wanted in (["turned.png"], [], []):
        seen.clear()
        assert len(apply_files(generator, [folder], out)) == 3
        assert seen == wanted
    weaker = build_generator("light", 0.05)
    apply_files(weaker, [folder], out)
    assert len(seen) == 3
    assert len(apply_files(weaker, [folder], folder / "again")) == 3  # of another folder of results neither


@pytest.mark.parametrize("where", ["arrived", "drawn", "add", "replace"])
def test_who_is_stopped_anywhere_goes_on(
    where: str, generator: Generator, folder: Path, tiny_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one who had perturbed the same before, with another bound."""
    form = Form(draw=faap.load_detector(tiny_detector), score=0.0)
    out, whole = tmp_path / "out", tmp_path / "whole"
    apply_files(build_generator("light", 0.02), [folder], out, form)
    wanted = apply_files(generator, [folder], whole, form)

    def stop(*rest: Any) -> Any:
        raise KeyboardInterrupt

    owner = {"add": deploy._Ledger, "replace": os}.get(where, deploy)
    with monkeypatch.context() as patched:
        patched.setattr(owner, where, stop)
        with pytest.raises(KeyboardInterrupt):
            apply_files(generator, [folder], out, form)
    assert apply_files(generator, [folder], out, form) == wanted
    assert listed(out) == listed(whole)
    for name in listed(whole) - {"applied.jsonl"}:
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_nothing_is_replaced_that_is_not_ours(generator: Generator, folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FaapError, match=r"plain.png: would be replaced by its result; .*--out"):
        apply_files(generator, [folder / "more" / "plain.png"], folder / "more")
    shutil.copy(folder / "turned.jpg", folder / "turned.png")
    with pytest.raises(FaapError, match=r"turned.png and .*turned.jpg would both become .*turned.png"):
        apply_files(generator, [folder], tmp_path / "out")
    (folder / "turned.png").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "turned.png").write_text("mine")
    with pytest.raises(FaapError, match=r"turned.png: is not what faap left there; .*--out"):
        apply_files(generator, [folder], tmp_path / "out")
    assert listed(tmp_path / "out") == {"turned.png"}
    (tmp_path / "out" / "turned.png").unlink()
    apply_files(generator, [folder / "turned.jpg"], tmp_path / "out")
    other = tmp_path / "other" / "turned.jpg"
    other.parent.mkdir()
    picture(seed=9).save(other)
    with pytest.raises(FaapError, match=r"turned.png: is the result of .*pictures/turned.jpg; .*--out"):
        apply_files(generator, [other], tmp_path / "out")
    (tmp_path / "out" / "turned.png").write_text("edited")
    with pytest.raises(FaapError, match=r"turned.png: is not what faap left there; .*--out"):
        apply_files(generator, [folder / "turned.jpg"], tmp_path / "out")
    (tmp_path / "out" / "applied.jsonl").write_text("my own notes\n")
    with pytest.raises(FaapError, match=r"applied.jsonl: is there, and not faap's"):
        apply_files(generator, [folder / "turned.jpg"], tmp_path / "out")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_perturbation_of_nothing_has_no_share_that_arrives(folder: Path, tmp_path: Path) -> None:
    for row in apply_files(build_generator("light", 0.0), [folder], tmp_path / "out", Form(jpeg=80)):
        assert row["kept"] is None
        assert row["linf_pixels"] > 0


@pytest.mark.parametrize("change", [{"source": None}, {"kept": "x"}, {"psnr_db": []}, {"notes": 3}])
def test_a_line_that_is_not_ours_says_nothing(
    change: dict[str, Any], generator: Generator, folder: Path, tmp_path: Path
) -> None:
    (row,), out = apply_files(generator, [folder / "turned.jpg"], tmp_path), tmp_path / "applied.jsonl"
    out.write_text("[" * 100_000 + "\n" + json.dumps(row) + "\n")
    assert apply_files(generator, [folder / "turned.jpg"], tmp_path) == [row]
    out.write_text(json.dumps(row | change) + "\n")
    with pytest.raises(FaapError, match=r"applied.jsonl: is there, and not faap's"):
        apply_files(generator, [folder / "turned.jpg"], tmp_path)


def test_pictures_that_lie_within_the_folder_of_results_are_made_and_results_are_not(
    generator: Generator, folder: Path, tiny_detector: Path
) -> None:
    form = Form(draw=faap.load_detector(tiny_detector), score=0.0)
    wanted = {"more/plain.png", "more/print.png", "turned.png"}
    for _ in range(2):  # the second time there is a list of results
        made = apply_files(generator, [folder], folder.parent, form)
        assert {row["file"] for row in made} == wanted
    for results in (folder.parent / "more", folder.parent / "drawn"):
        with pytest.raises(FaapError, match="no picture or video in this folder, but perhaps for results of faap"):
            apply_files(generator, [results], folder.parent)


def test_pictures_of_a_format_that_is_not_read_are_named(generator: Generator, folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "turned.jpg", folder / "scan.JFIF")
    shutil.copy(folder / "turned.jpg", folder / "old.jpe")
    # few machines' lists of formats have .ARW, and of macOS's own beside each file none is a picture
    for name in (
        "a.heic",
        "more/b.mpg",
        "c.ARW",
        "d.psd",
        "words.csv",
        ".DS_Store",
        "._turned.jpg",
        "more/._plain.png",
    ):
        (folder / name).write_text("")
    with pytest.warns(UserWarning, match=r"left out: a.heic, c.ARW, d.psd \(4 in all\)\.$") as said:
        made = apply_files(generator, [folder], tmp_path / "out")
    assert len(said) == 1
    assert len(made) == 5
    (folder / "more" / "print.tif").unlink()
    with pytest.warns(UserWarning, match=r"more: of a format that is not read, and left out: b.mpg \(1 in all\)\.$"):
        apply_files(generator, [folder / "more"], tmp_path / "out2")


def test_a_class_without_a_name_is_drawn_with_its_number(tiny_detector: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written, real = list[str](), ImageDraw.ImageDraw.text

    def watched(self: Any, place: Any, text: str, *rest: Any, **named: Any) -> None:
        written.append(text)
        real(self, place, text, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", watched)
    detector = faap.load_detector(tiny_detector)
    monkeypatch.setattr(detector, "labels", {})
    deploy.drawn(detector, [picture()], 0.0)
    assert {text.split()[0] for text in written} == {"0"}


def test_what_cannot_be_read_is_named_and_the_rest_is_made(generator: Generator, folder: Path, tmp_path: Path) -> None:
    (folder / "broken.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:300])
    (folder / "false.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    frames = [picture(seed=seed) for seed in range(3)]
    frames[0].save(folder / "moves.gif", save_all=True, append_images=frames[1:])
    picture(65_600, 1).save(folder / "long.png")
    (folder / "link.png").symlink_to(folder / "taken away.png")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(NotAllMade, match="6 of 9 cannot be made, the others are in") as error:
        apply_files(generator, [folder], tmp_path / "out", Form(jpeg=95))
    assert {row["file"] for row in error.value.made} == {"turned.jpg", "more/plain.jpg", "more/print.jpg"}
    with pytest.raises(NotAllMade, match=r"^1 of 1 cannot be made: .*broken"):
        apply_files(generator, [folder / "broken.jpg"], tmp_path / "none")
    names = ("broken.jpg", "false.mp4", "moves.gif: holds 3 pictures", "long.png", "link.png", "pipe.png: is a pipe")
    for name in names:
        assert str(error.value).count(str(folder / name)) == 1 + (name == "link.png")
    assert listed(tmp_path / "out") == {"turned.jpg", "more/plain.jpg", "more/print.jpg", "applied.jsonl"}
    for wrong, said in ((folder / "none.jpg", "no such file or folder"), (tmp_path / "empty", "no picture or video")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(FaapError, match=said):
            apply_files(generator, [wrong], tmp_path / "out")


def test_what_keeps_results_from_being_written_is_said_of_them(
    generator: Generator, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FaapError, match=r"^out .*file: cannot be made or written to \(File exists\); .*--out\.$"):
        apply_files(generator, [folder], tmp_path / "file")
    film(folder / "walk.mkv", frames=2)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, made in (("_rewrite", folder / "walk.mkv"), ("arrived", folder / "turned.jpg")):
        with monkeypatch.context() as patched:
            patched.setattr(deploy, name, full)
            with pytest.raises(FaapError, match=r"^out .*out: cannot be made .*No space left.* make room"):
                apply_files(generator, [made], tmp_path / "out")


def film(
    path: Path,
    frames: int = 45,
    size: tuple[int, int] = (64, 48),
    *,
    times: Any = None,
    sounds: tuple[str, ...] = ("aac",),
    words: str = "",
    second: bool = False,
    **options: str,
) -> None:
    """Write a film with sound in several languages beside the pictures, perhaps a second picture track, and words."""
    with av.open(f"file:{path}", "w", options=options) as file:
        pictures = [file.add_stream("libx264", rate=15, options={"crf": "5"}) for _ in range(1 + second)]
        stream, heard = pictures[0], [file.add_stream(codec, rate=16000) for codec in sounds]
        text = file.add_mux_stream(words) if words else None
        for each in pictures:
            each.width, each.height = size
            each.pix_fmt = "yuv444p" if size[0] % 2 else "yuv420p"
        for each, language in zip(heard, ("kor", "deu"), strict=False):
            each.metadata["language"] = language
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(frames):
            image = picture(*size)
            ImageDraw.Draw(image).rectangle((number, 10, number + 9, 30), fill="white")
            frame = av.VideoFrame.from_image(image)
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            noise = np.random.default_rng(number).normal(0, 0.1, (1, 16000 // 15)).astype(np.float32)
            sound = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
            sound.sample_rate, sound.pts = 16000, number * noise.size
            file.mux([packet for each in pictures for packet in each.encode(frame)])
            file.mux([packet for each in heard for packet in each.encode(sound)])
        if text is not None:
            packet = av.Packet(b"\0\5hello" if words == "mov_text" else b"hello")
            packet.stream, packet.time_base, packet.pts, packet.dts = text, Fraction(1, 1000), 100, 100
            packet.duration = 500
            file.mux(packet)
        file.mux([packet for each in (*pictures, *heard) for packet in each.encode()])


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_a_video_keeps_its_frames_its_times_and_its_sound(
    generator: Generator, tmp_path: Path, size: tuple[int, int]
) -> None:
    film(tmp_path / "walk.mkv", size=size)
    (row,) = apply_files(generator, [tmp_path / "walk.mkv"], tmp_path / "out")
    assert row["frames"] == 45
    assert row["frames_measured"] == 20
    assert row["kept"] > 0.5
    assert row["notes"] == []

    def heard(file: Any) -> list[bytes]:
        found = [bytes(packet) for packet in file.demux(audio=0) if packet.size]
        file.seek(0)
        return found

    with av.open(str(tmp_path / "walk.mkv")) as before, av.open(str(tmp_path / "out" / "walk.mp4")) as after:
        assert after.streams.audio[0].codec.name == before.streams.audio[0].codec.name
        assert heard(before) == heard(after)
        pairs = list(zip(before.decode(video=0), after.decode(video=0), strict=True))
    for one, other in pairs:
        assert (other.width, other.height) == size
        assert other.time == pytest.approx(one.time, abs=1e-3)
    source, found = (frame.to_ndarray(format="rgb24") for frame in pairs[20])
    # in brightness, of which the codec keeps every pixel
    before, after, wanted = (each @ [0.299, 0.587, 0.114] for each in (source, found, apply(generator, source)))
    assert np.abs(after - wanted).mean() < 0.7 * np.abs(after - before).mean()


def test_a_video_of_changing_rate_keeps_its_times(generator: Generator, tmp_path: Path) -> None:
    times = [0, 40, 80, 300, 340, 900, 905, 2000]
    film(tmp_path / "walk.mkv", frames=8, times=times)
    apply_files(generator, [tmp_path / "walk.mkv"], tmp_path / "out")
    with av.open(str(tmp_path / "out" / "walk.mp4")) as after:
        assert [round(1000 * frame.time) for frame in after.decode(video=0)] == times


def test_a_video_with_a_colon_in_its_name_and_sound_that_mp4_cannot_hold(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path("10:30.mkv"), frames=15, sounds=("pcm_s16le",))
    apply_files(generator, ["10:30.mkv"], "out")
    with av.open("file:out/10:30.mp4") as after:
        assert after.streams.audio[0].codec.name == "aac"
        assert len(list(after.decode(video=0))) == 15


@pytest.mark.parametrize(
    ("name", "sounds", "words", "kept", "lost"),
    [
        ("walk.mkv", ("mp3", "pcm_s16le"), "subrip", ["mp3float", "aac"], ["not kept: video h264, subtitle srt"]),
        ("walk.mp4", ("aac", "mp3"), "mov_text", ["aac", "mp3float", "mov_text"], ["not kept: video h264"]),
    ],
)
def test_every_track_of_a_video_is_kept_or_named(
    generator: Generator,
    tmp_path: Path,
    name: str,
    sounds: tuple[str, ...],
    words: str,
    kept: list[str],
    lost: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    film(tmp_path / name, frames=15, sounds=sounds, words=words, second=True)
    (row,) = apply_files(generator, [tmp_path / name], tmp_path / "out")
    assert row["notes"] == lost
    with av.open(str(tmp_path / "out" / "walk.mp4")) as after:
        pictures, *others = after.streams
        assert pictures.codec.name == "h264"
        assert [each.codec_context.name for each in others] == kept
        assert [each.language for each in others[:2]] == ["kor", "deu"]
        heard = [packet for packet in after.demux(others[1]) if packet.size]
        assert sum(packet.duration * packet.time_base for packet in heard) > 0.99  # to the last of a second
        after.seek(0)
        if words == "mov_text":
            assert b"hello" in b"".join(bytes(packet) for packet in after.demux(others[2]))
    save_generator(generator, tmp_path / "generator")
    assert cli.main(["apply", str(tmp_path / "generator"), str(tmp_path / name), f"--out={tmp_path / 'out'}"]) == 0
    assert f"{tmp_path / name}: {lost[0]}" in capsys.readouterr().out.replace("\n", "")


@pytest.mark.parametrize(
    ("name", "share"), [("a.mkv", 0.5), ("a.mkv", 0.97), ("a.mp4", 0.5), ("a.mp4", 0.97), ("a.avi", 0.6)]
)
def test_a_video_that_was_cut_off_is_made_and_said_to_be(
    generator: Generator, tmp_path: Path, name: str, share: float
) -> None:
    film(tmp_path / name, movflags="faststart")
    whole = (tmp_path / name).read_bytes()
    for again in ("first", "second"):  # FFmpeg says the same thing once, unless it is told to repeat it
        (tmp_path / again).mkdir()
        (tmp_path / again / name).write_bytes(whole[: int(share * len(whole))])
        (row,) = apply_files(generator, [tmp_path / again / name], tmp_path / again / "out")
        (note,) = row["notes"]
        assert re.fullmatch(r"cut off or damaged \(.+\): what can be read of its first (.*) seconds is made", note)
        with av.open(str(tmp_path / again / "out" / "a.mp4")) as after:
            *_, frame = after.decode(video=0)
        assert 0 < row["frames"] <= 45 * (share + 0.05)
        assert float(note.split()[-4]) == pytest.approx(frame.time + 1 / 15, abs=0.06)
    assert av.logging.get_level() is None  # as it was


QUARTERS = np.zeros((48, 64, 3), np.uint8)
QUARTERS[:24, :32], QUARTERS[:24, 32:], QUARTERS[24:, :32] = (230, 20, 20), (20, 230, 20), (20, 20, 230)


def quarters(
    path: Path, codec: str = "libx264", pix_fmt: str = "yuv420p", *, space: int = 2, full: bool = False, **about: Any
) -> None:
    """Write a film of three pictures, of four colours each."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for name, value in (about | {"colorspace": space, "color_range": 1 + full}).items():
            setattr(stream.codec_context, name, value)
        for number in range(3):
            frame = av.VideoFrame.from_ndarray(QUARTERS, format="rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=space or 5, dst_color_range=1 + full)
            frame.pts, frame.time_base = number, Fraction(1, 15)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def seen_in(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return next(file.decode(video=0)).to_ndarray(format="rgb24").astype(float)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "space", "full"),
    [
        ("libx264", "yuv420p", 1, False),
        ("libx264", "yuv420p", 5, True),
        ("libx264", "yuv420p", 1, True),
        ("mjpeg", "yuvj420p", 5, True),
        ("libx264", "yuv420p10le", 9, False),
        ("libx264", "yuv420p", 7, False),
        ("libx264", "yuv420p", 2, False),
        ("libx264rgb", "rgb24", 0, False),
    ],
)
def test_the_colours_of_a_video_stay_those_of_its_kind(
    codec: str, pix_fmt: str, space: int, full: bool, tmp_path: Path
) -> None:
    quarters(tmp_path / "walk.mkv", codec, pix_fmt, space=space, full=full, color_primaries=1, color_trc=1)
    apply_files(build_generator("light", 0.0), [tmp_path / "walk.mkv"], tmp_path / "out")
    # halved chroma is wrong where colours meet, which is in few places
    away = np.abs(seen_in(tmp_path / "walk.mkv") - seen_in(tmp_path / "out" / "walk.mp4"))
    assert np.percentile(away, 80) <= 4
    with av.open(str(tmp_path / "walk.mkv")) as before, av.open(str(tmp_path / "out" / "walk.mp4")) as after:
        one, other = (next(file.decode(video=0)) for file in (before, after))
        assert (other.colorspace, other.color_range) == (one.colorspace or 5, one.color_range)
        kept = after.streams.video[0].codec_context
        assert (kept.color_primaries, kept.color_trc) == (1, 1)


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ((0, 1, -1, 0), np.rot90(QUARTERS, -1)),
        ((-1, 0, 0, -1), np.rot90(QUARTERS, 2)),
        ((0, -1, 1, 0), np.rot90(QUARTERS)),
        ((-1, 0, 0, 1), np.fliplr(QUARTERS)),
        ((1, 0, 0, -1), np.flipud(QUARTERS)),
        ((0, 1, 1, 0), QUARTERS.transpose(1, 0, 2)),
        ((0, -1, -1, 0), np.rot90(QUARTERS, 2).transpose(1, 0, 2)),
    ],
    ids=["right", "round", "left", "mirrored", "upside down", "transposed", "the other way"],
)
def test_a_video_that_lies_otherwise_is_put_upright(
    matrix: tuple[int, ...], wanted: np.ndarray, tmp_path: Path
) -> None:
    """As phones write it: a point (x, y) is to be seen at (x, y) times a matrix that stands in the track's header."""
    quarters(tmp_path / "a.mp4", sample_aspect_ratio=Fraction(16, 11))
    content = (tmp_path / "a.mp4").read_bytes()
    own, new = (struct.pack(">5i", *(each << 16 for each in (a, b, 0, c, d))) for a, b, c, d in ((1, 0, 0, 1), matrix))
    place = content.index(own, content.index(b"tkhd"))
    (tmp_path / "a.mp4").write_bytes(content[:place] + new + content[place + len(new) :])
    apply_files(build_generator("light", 0.0), [tmp_path / "a.mp4"], tmp_path / "out")
    found = seen_in(tmp_path / "out" / "a.mp4")
    assert found.shape == wanted.shape
    assert np.median(np.abs(found - wanted).mean(2)) < 3
    with av.open(str(tmp_path / "out" / "a.mp4")) as after:  # a pixel's shape turns with it
        shape = after.streams.video[0].sample_aspect_ratio
    assert shape == (Fraction(11, 16) if matrix[0] == 0 else Fraction(16, 11))


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"), [("a.mov", "qtrle", "argb"), ("a.webm", "libvpx-vp9", "yuva420p")]
)
def test_a_video_that_was_transparent_says_that_it_is_no_more(
    name: str, codec: str, pix_fmt: str, tmp_path: Path
) -> None:
    quarters(tmp_path / name, codec, pix_fmt)
    (row,) = apply_files(build_generator("light", 0.0), [tmp_path / name], tmp_path / "out")
    assert row["notes"] == ["not kept: transparency"]


def test_a_video_whose_pictures_change_their_size_is_made_in_the_first_ones(
    generator: Generator, tmp_path: Path
) -> None:
    """As calls that are recorded are, where the net grows faster."""
    with av.open(str(tmp_path / "call.webm"), "w") as file:
        stream = file.add_stream("libvpx", rate=15)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for start, larger in ((0, 1), (8, 2)):
            coder = av.CodecContext.create("libvpx", "w")
            coder.width, coder.height, coder.pix_fmt = 64 * larger, 48 * larger, "yuv420p"
            coder.time_base, coder.bit_rate = Fraction(1, 15), 4_000_000
            image = QUARTERS.repeat(larger, 0).repeat(larger, 1)
            for number in range(start, start + 8):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 15)
                for packet in [*coder.encode(frame), *(coder.encode() if number == start + 7 else ())]:
                    packet.stream, packet.time_base = stream, Fraction(1, 15)
                    file.mux(packet)
    (row,) = apply_files(generator, [tmp_path / "call.webm"], tmp_path / "out")
    assert row["notes"] == ["pictures of 2 sizes have the first one's now"]
    assert row["frames"] == 16
    with av.open(str(tmp_path / "out" / "call.mp4")) as file:
        found = [frame.to_ndarray(format="rgb24").astype(float) for frame in file.decode(video=0)]
    for each in found:
        assert each.shape == QUARTERS.shape
        assert np.median(np.abs(each - apply(generator, QUARTERS))) < 6


@pytest.mark.parametrize(
    ("codec", "rate", "layout", "wanted", "notes"),
    [
        ("pcm_s16le", 192000, "stereo", (96000, 2), []),
        ("pcm_s16le", 50000, "stereo", (64000, 2), []),
        ("pcm_s16le", 4000, "mono", (8000, 1), []),
        ("pcm_s16le", 48000, "5.1", (48000, 6), []),
        ("pcm_s16le", 48000, "quad", (48000, 2), ["sound of 4 channels is stereo now"]),
    ],
)
def test_sound_that_is_made_anew_keeps_its_channels_and_takes_a_rate_that_there_is(
    codec: str, rate: int, layout: str, wanted: tuple[int, int], notes: list[str], tmp_path: Path
) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        pictures, heard = file.add_stream("libx264", rate=15), file.add_stream(codec, rate=rate, layout=layout)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        channels = heard.codec_context.channels
        sound = av.AudioFrame.from_ndarray(np.full((1, rate // 2 * channels), 999, np.int16), "s16", layout)
        sound.sample_rate, sound.pts = rate, 0
        file.mux([*pictures.encode(av.VideoFrame.from_image(picture(64, 48))), *heard.encode(sound)])
        file.mux([*pictures.encode(), *heard.encode()])
    (row,) = apply_files(build_generator("light", 0.0), [tmp_path / "a.mkv"], tmp_path / "out")
    assert row["notes"] == notes
    with av.open(str(tmp_path / "out" / "a.mp4")) as file:
        heard = file.streams.audio[0]
        assert (heard.codec_context.sample_rate, heard.codec_context.channels) == wanted
        length = float(sum(each.duration for each in file.demux(heard) if each.size) * heard.time_base)
    assert length == pytest.approx(0.5, abs=0.2)


def test_of_a_video_that_is_measured_pictures_are_kept_and_not_perturbations(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "walk.mkv", frames=25)
    held, real = list[Any](), deploy._rewrite

    def watched(*rest: Any) -> Any:
        found = real(*rest)
        held.extend(rest[-1].values())
        return found

    monkeypatch.setattr(deploy, "_rewrite", watched)
    (row,) = apply_files(generator, [tmp_path / "walk.mkv"], tmp_path / "out")
    assert row["frames_measured"] == 20
    assert [(type(each), each.dtype, each.shape) for each in held] == 20 * [(np.ndarray, np.uint8, (48, 64, 3))]


def test_a_detector_that_changes_while_it_draws_is_an_error(
    generator: Generator, folder: Path, tiny_detector: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, real = faap.load_detector(tiny_detector), deploy.drawn

    def drifting(*rest: Any) -> Image.Image:
        next(detector.parameters()).add_(1e-6)
        return real(*rest)

    monkeypatch.setattr(deploy, "drawn", drifting)
    with pytest.raises(FaapError, match=r"the frozen detector .* has changed while it was used"):
        apply_files(generator, [folder], tmp_path / "out", Form(draw=detector))


def test_without_pyav_a_video_is_said_to_take_it(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "walk.mkv", frames=2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FaapError, match=r"pip install 'faap\[video\]'") as error:
        apply_files(generator, [tmp_path / "walk.mkv"], tmp_path / "out")
    assert str(error.value).count("walk.mkv") == 1


def test_the_command_perturbs_draws_and_says_what_arrives(
    generator: Generator, folder: Path, tiny_detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_generator(generator, tmp_path / "generator")
    place, out = str(tmp_path / "generator"), tmp_path / "out"
    assert cli.main(["apply", place, str(folder), f"--out={out}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "No detector is known: pictures are perturbed at their own size." in shown
    rows = [json.loads(line) for line in (out / "applied.jsonl").read_text().splitlines()]
    least = min(rows, key=lambda row: row["kept"])
    assert f"3 files in {out}." in shown
    assert f"(least: {100 * least['kept']:.1f} %, {least['file']})" in shown
    assert f"largest change of a pixel is {max(row['linf_pixels'] for row in rows):.0f} of 255" in shown
    assert cli.main(["apply", place, str(folder), f"--out={out}", "--draw"]) == 2
    assert "Give --detr_checkpoint." in capsys.readouterr().err
    # also where one of many is broken
    (tmp_path / "broken.png").write_text("")
    assert cli.main(["apply", place, str(folder), str(tmp_path / "broken.png"), f"--out={out}"]) == 2
    again = capsys.readouterr()
    assert " ".join(again.out.split()) == shown
    assert again.err.startswith(f"error: 1 of 4 cannot be made, the others are in {out}: {tmp_path / 'broken.png'}: ")
    flags = [f"--detr_checkpoint={tiny_detector}", "--draw", "--score=0", f"--out={tmp_path / 'drawn'}", "--jpeg=95"]
    assert cli.main(["apply", place, str(folder / "turned.jpg"), *flags]) == 0
    assert f"1 file in {tmp_path / 'drawn'}." in " ".join(capsys.readouterr().out.split())
    with Image.open(tmp_path / "drawn" / "drawn" / "turned.jpg") as drawn:
        assert drawn.size == (2 * 44 + deploy._BETWEEN, 60)


def test_the_shipped_generator_knows_its_detector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture().save(tmp_path / "a.png")
    assert cli.main(["apply", "promenade", str(tmp_path / "a.png"), f"--out={tmp_path / 'out'}"]) == 0
    assert "No detector" not in capsys.readouterr().out


def test_three_lines_put_a_generator_into_a_pipeline_of_transformers(generator: Generator, tiny_detector: Path) -> None:
    processor = AutoImageProcessor.from_pretrained(tiny_detector, backend="pil")
    model = AutoModelForObjectDetection.from_pretrained(tiny_detector).eval()
    image = picture()
    x = processor(image, return_tensors="pt")
    before = model(**x).logits
    x["pixel_values"] = generator.perturb(x["pixel_values"], x["pixel_mask"])
    after = model(**x).logits
    detector = faap.load_detector(tiny_detector)
    moved = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None] / 255
    ours = detector(generator.perturb(normalise(moved))).logits
    assert torch.allclose(after, ours, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3), ((0.0,) * 3, (1 / 255,) * 3)]
)
def test_the_page_puts_a_generator_behind_a_processor_of_other_units(
    mean: tuple[float, ...], std: tuple[float, ...], generator: Generator, tiny_detector: Path
) -> None:
    """One that normalises otherwise, not at all, and one that does not rescale either."""
    page = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text(encoding="utf-8")
    (lines,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "own_mean" in block)
    pixels = [
        torch.from_numpy(np.asarray(picture(*size)).transpose(2, 0, 1) / 255).float() for size in ((60, 44), (40, 30))
    ]
    mask = torch.zeros(2, 44, 60, dtype=torch.bool)
    whole, own = torch.zeros(2, 3, 44, 60), torch.zeros(2, 3, 44, 60)
    for index, each in enumerate(pixels):
        inside = (index, slice(None), slice(each.shape[1]), slice(each.shape[2]))
        mask[inside[0], *inside[2:]] = True
        whole[inside], own[inside] = normalise(each), normalise(each, mean, std)
    detector = faap.load_detector(tiny_detector)
    detector.preprocessing = Preprocessing(shortest_edge=None, longest_edge=None, mean=mean, std=std)
    wanted, _ = detector.adapt(generator.perturb(whole, mask), mask)
    processor = SimpleNamespace(image_mean=mean, image_std=std)
    given = {"processor": processor, "x": {"pixel_values": own, "pixel_mask": mask}, "generator": generator}
    with torch.no_grad():
        exec(lines, given)
    found = given["x"]["pixel_values"]
    assert (found - wanted).abs().max() < 1e-5 / std[0]
    assert (found - own).abs().max() > 0.01 / std[0]


def test_sound_that_is_made_anew_keeps_its_times(generator: Generator, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "late.mkv"), "w") as file:
        pictures, heard = file.add_stream("libx264", rate=15), file.add_stream("pcm_s16le", rate=16000)
        pictures.width, pictures.height, pictures.pix_fmt, heard.layout = 64, 48, "yuv420p", "mono"
        for _ in range(45):
            file.mux(pictures.encode(av.VideoFrame.from_image(picture(64, 48))))
        for number in (*range(10), *range(15, 30)):  # from the first second on, with a pause
            sound = av.AudioFrame.from_ndarray(np.full((1, 1000), number, np.int16), "s16", "mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, 16000 + 1000 * number, Fraction(1, 16000)
            file.mux(heard.encode(sound))
        file.mux([*pictures.encode(), *heard.encode()])
    apply_files(generator, [tmp_path / "late.mkv"], tmp_path / "out")
    with av.open(str(tmp_path / "out" / "late.mp4")) as file:
        times = np.array([float(each.pts * each.time_base) for each in file.demux(audio=0) if each.pts is not None])
    assert times[0] == pytest.approx(1, abs=0.1)
    assert np.diff(times).max() == pytest.approx(5 / 16, abs=0.1)


def test_of_a_video_that_is_damaged_within_the_rest_is_made(generator: Generator, tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", movflags="faststart")
    content = bytearray((tmp_path / "a.mp4").read_bytes())
    begin, end = 6 * len(content) // 10, 7 * len(content) // 10
    content[begin:end] = bytes(end - begin)
    (tmp_path / "a.mp4").write_bytes(content)
    (row,) = apply_files(generator, [tmp_path / "a.mp4"], tmp_path / "out")
    (note,) = row["notes"]
    assert note.startswith("cut off or damaged (")
    assert 20 < row["frames"] < 45
