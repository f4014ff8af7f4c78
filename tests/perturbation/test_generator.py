import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

import faap
from faap.data.images import MEAN, STD
from faap.errors import FaapError
from faap.perturbation import Generator, build_generator
from faap.perturbation.light import _Norm

BLACK = torch.tensor([(0 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])[:, None, None]
WHITE = torch.tensor([(1 - mean) / std for mean, std in zip(MEAN, STD, strict=True)])[:, None, None]


def images(*shape: int, seed: int = 0) -> Tensor:
    """Images of smooth colours with some noise, all pixels in range."""
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(shape[0], 3, 5, 6, generator=generator)
    pixels = F.interpolate(smooth, size=shape[1:], mode="bilinear") + 0.1 * torch.randn(
        shape[0], 3, *shape[1:], generator=generator
    )
    return BLACK + pixels.clamp(0, 1) * (WHITE - BLACK)


def strong(arch: str = "light", seed: int = 0) -> Generator:
    """A generator whose output is as large as after training, with statistics and affine parameters that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generator = build_generator(arch).eval()
        for name, value in generator.named_parameters():
            if "norm" in name:
                value.data += 0.3 * torch.randn(value.shape)
        last = generator.out if arch == "light" else generator.out_conv
        nn.init.normal_(last.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    return generator


def gigaflops(network: nn.Module, **inputs: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(**inputs)
    return counter.get_total_flops() / 1e9


def test_the_light_generator_is_small_and_cheap_beside_the_detector_and_the_original() -> None:
    pixels = torch.zeros(1, 3, 320, 416)
    config = DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        use_pretrained_backbone=False,
        backbone_config=ResNetConfig(out_features=["stage4"]),
    )
    detr = gigaflops(DetrForObjectDetection(config).eval(), pixel_values=pixels)
    unet = gigaflops(build_generator("unet").eval(), pixel_values=pixels)
    light = gigaflops(build_generator().eval(), pixel_values=pixels)
    assert unet == pytest.approx(25, abs=0.1)
    assert detr == pytest.approx(26, abs=0.5)
    assert light / detr <= 0.06
    assert light / unet <= 0.06
    assert sum(value.numel() for value in build_generator().parameters()) <= 400_000


@pytest.mark.parametrize("arch", ["light", "unet"])
@pytest.mark.parametrize("epsilon", [0.05, 0.10])
def test_the_perturbation_stays_in_its_budget_and_in_the_range_of_pixels(arch: str, epsilon: float) -> None:
    x = images(2, 40, 56)
    x[0, :, :10] = BLACK
    x[1, :, :10] = WHITE
    generator = strong(arch)
    generator.epsilon = epsilon
    perturbed = generator.perturb(x)
    change = (perturbed - x).abs()
    assert change.max() <= epsilon + 1e-6
    assert change.max() > 0.5 * epsilon
    assert (perturbed >= BLACK).all()
    assert (perturbed <= WHITE).all()
    raw = generator(x)
    low, high = BLACK.expand_as(x), WHITE.expand_as(x)
    expected = torch.minimum(torch.maximum(x + epsilon * torch.tanh(raw), low), high)
    assert torch.allclose(perturbed, expected, atol=1e-6)


@pytest.mark.parametrize("arch", ["light", "unet"])
def test_what_is_overwritten_where_no_gradient_is_needed_changes_nothing(arch: str) -> None:
    x, generator = images(2, 40, 56), strong(arch)
    mask = torch.ones(2, 40, 56, dtype=torch.bool)
    mask[1, :, 50:] = False
    kept = x.clone()
    for given in (None, mask):
        with torch.no_grad():
            without = generator.perturb(x, given)
        assert torch.equal(without, generator.perturb(x, given))
        assert torch.equal(x, kept)
        through = generator.perturb(x.clone().requires_grad_(), given)  # a gradient to the image alone
        assert torch.equal(without, through)


class Fixed(Generator):
    """The same for every image, or the image itself: what it gives is not its to give away."""

    WIDTHS = (1, 1, 1)

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.delta = kind, nn.Parameter(torch.linspace(-2, 2, 3 * 20 * 30).view(1, 3, 20, 30))

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        whole = {"one": self.delta, "expanded": self.delta.expand_as(pixel_values), "image": pixel_values}
        return whole[self.kind]


@pytest.mark.parametrize("kind", ["one", "expanded", "image"])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_generator_gives_is_read_and_not_written(kind: str, batch: int) -> None:
    generator, x = Fixed(kind), images(batch, 20, 30)
    kept, delta = x.clone(), generator.delta.detach().clone()
    expected = torch.maximum(torch.minimum(x + 0.1 * (x if kind == "image" else delta).tanh(), WHITE), BLACK)
    with torch.no_grad():
        measured = generator.perturb(x)
    torch.testing.assert_close(measured, expected)
    assert torch.equal(generator.perturb(x), measured)
    assert torch.equal(x, kept)
    assert torch.equal(generator.delta, delta)


def test_epsilon_may_be_set_anew() -> None:
    x, generator = images(1, 32, 32), strong()
    generator.epsilon = 0.02
    assert (generator.perturb(x) - x).abs().max() <= 0.02 + 1e-6
    generator.epsilon = 0
    assert torch.allclose(generator.perturb(x), x, atol=1e-6)


def test_the_first_perturbation_is_small_but_not_nothing() -> None:
    x = images(4, 128, 160)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        change = (build_generator(epsilon=0.1).perturb(x) - x).abs()
    assert 1e-4 < change.mean() < 0.02


@pytest.mark.parametrize("arch", ["light", "unet"])
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (3, 2), (15, 16), (33, 50), (128, 160)])
def test_any_size_works(arch: str, size: tuple[int, int]) -> None:
    x = images(2, *size).requires_grad_()
    generator = strong(arch)
    out = generator.perturb(x)
    out.sum().backward()
    assert out.shape == x.shape
    assert out.isfinite().all()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in generator.parameters())


SIZES = [(48, 64), (37, 41), (64, 20), (5, 80), (1, 1), (64, 80)]


def padded(singles: list[Tensor]) -> tuple[Tensor, Tensor]:
    height, width = max(x.shape[1] for x in singles), max(x.shape[2] for x in singles)
    batch = torch.stack([F.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in singles])
    mask = torch.stack(
        [F.pad(torch.ones(x.shape[1:]), (0, width - x.shape[2], 0, height - x.shape[1])) for x in singles]
    )
    return batch, mask.bool()


@pytest.mark.parametrize("canvas", [None, (70, 95)])
def test_a_padded_batch_gives_what_each_image_gives_alone(canvas: tuple[int, int] | None) -> None:
    generator = strong()
    singles = [images(1, *size, seed=i)[0] for i, size in enumerate(SIZES)]
    batch, mask = padded(singles)
    if canvas is not None:
        batch = F.pad(batch, (0, canvas[1] - batch.shape[3], 0, canvas[0] - batch.shape[2]))
        mask = F.pad(mask, (0, canvas[1] - mask.shape[2], 0, canvas[0] - mask.shape[1]))
    together = generator.perturb(batch, mask)
    for x, out in zip(singles, together, strict=True):
        alone = generator.perturb(x[None])[0]
        assert (alone - x).abs().max() > 1e-3
        assert torch.allclose(out[:, : x.shape[1], : x.shape[2]], alone, atol=2e-6)


def test_gradients_of_a_padded_batch_are_those_of_the_images_alone() -> None:
    generator = strong().double()
    singles = [images(1, *size, seed=i)[0].double() for i, size in enumerate(SIZES)]
    weights = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i)).double() for i, x in enumerate(singles)]
    batch, mask = padded(singles)
    generator.perturb(batch, mask).mul(padded(weights)[0]).sum().backward()
    together = {name: value.grad.clone() for name, value in generator.named_parameters() if value.grad is not None}
    generator.zero_grad()
    for x, weight in zip(singles, weights, strict=True):
        generator.perturb(x[None]).mul(weight).sum().backward()
    assert together
    for name, value in generator.named_parameters():
        assert value.grad is not None
        assert (together[name] - value.grad).abs().max() <= 1e-11 * value.grad.abs().max(), name


@pytest.mark.parametrize("arch", ["light", "unet"])
def test_padding_is_left_exactly_as_it_was(arch: str) -> None:
    x, mask = images(2, 40, 48), torch.ones(2, 40, 48, dtype=torch.bool)
    mask[0, 30:] = False
    mask[1, :, 20:] = False
    out = strong(arch).perturb(x, mask)
    outside = ~mask[:, None].expand_as(x)
    assert torch.equal(out[outside], x[outside])
    assert not torch.equal(out, x)


def test_what_lies_in_the_padding_does_not_matter() -> None:
    generator, x, mask = strong(), images(1, 40, 48), torch.ones(1, 40, 48, dtype=torch.bool)
    mask[:, 30:] = False
    other = x.clone()
    other[:, :, 30:] = 2.0
    assert torch.equal(generator.perturb(x, mask)[:, :, :30], generator.perturb(other, mask)[:, :, :30])


def test_an_image_does_not_depend_on_the_others_in_its_batch_nor_on_the_mode() -> None:
    generator, x = strong().train(), images(4, 48, 64)
    together = generator.perturb(x)
    assert torch.equal(together, generator.perturb(x))
    assert torch.allclose(together[2:3], generator.perturb(x[2:3]), atol=1e-6)
    assert torch.equal(together, generator.eval().perturb(x))


def test_a_mask_of_ones_and_no_mask_are_the_same() -> None:
    generator, x = strong(), images(2, 48, 64)
    assert torch.equal(generator.perturb(x), generator.perturb(x, torch.ones(2, 48, 64, dtype=torch.bool)))


def test_masked_norm_equals_the_ordinary_one_on_the_cut_out_image() -> None:
    # the padded batch takes another route through the code than the image alone, which is of whole cells
    generator, x = strong(), images(1, 64, 48)
    mask = F.pad(torch.ones(1, 64, 48, dtype=torch.bool), (0, 32, 0, 16))
    padded_out = generator.perturb(F.pad(x, (0, 32, 0, 16)), mask)
    assert torch.allclose(padded_out[..., :64, :48], generator.perturb(x), atol=2e-6)


def test_each_output_pixel_sees_a_whole_person_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # group norm alone lets every pixel matter a little; without it only what the convolutions reach is left
    monkeypatch.setattr(_Norm, "forward", lambda norm, x, valid: F.silu(x))
    x = images(1, 256, 256).requires_grad_()
    strong()(x)[0, :, 128, 128].sum().backward()
    assert x.grad is not None
    for axis in (2, 3):
        reach = x.grad.abs().sum((0, 1, 5 - axis)).nonzero().flatten()
        assert 0 < reach.min() <= 128 - 60
        assert 255 > reach.max() >= 128 + 60


def test_the_skip_from_full_resolution_adds_the_image_itself() -> None:
    generator, x = build_generator(), images(2, 37, 50)
    out = generator.out
    nn.init.zeros_(out.weight)  # type: ignore[union-attr, arg-type]
    gains = torch.tensor([1.0, -2.0, 0.5])
    out.bias.data[-3:] = gains  # type: ignore[union-attr, index]
    assert torch.allclose(generator(x), x * gains[:, None, None], atol=1e-6)


def test_an_image_without_a_pixel_is_left_alone() -> None:
    generator, x, mask = strong(), images(2, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    mask[1] = False
    out = generator.perturb(x, mask)
    out.sum().backward()
    assert torch.equal(out[1], x[1])
    assert all(value.grad is not None and value.grad.isfinite().all() for value in generator.parameters())


def test_two_kinds_of_appearance_can_be_told_apart_quickly() -> None:
    """A few steps teach the sign of the perturbation from the orientation of stripes, whose mean colours are equal."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator()
        optimizer = torch.optim.AdamW(generator.parameters(), lr=1e-3)
        stripes = torch.arange(48).remainder(8).lt(4).float() - 0.5
        for _ in range(30):
            upright = torch.rand(8) < 0.5
            x = torch.where(upright[:, None, None, None], stripes[None, None, None, :], stripes[None, None, :, None])
            shift = int(torch.randint(8, (1,)))
            x = x.expand(8, 3, 48, 48).roll((shift, shift), (2, 3)) + 0.2 * torch.randn(8, 3, 48, 48)
            answer = torch.tanh(generator(x)).mean((1, 2, 3))
            optimizer.zero_grad()
            (answer - (2 * upright.float() - 1)).square().mean().backward()
            optimizer.step()
        assert ((answer > 0) == upright).all()


def test_autocast_gives_nearly_the_same_in_float32() -> None:
    generator, x = strong(), images(2, 48, 64)
    mask = torch.ones(2, 48, 64, dtype=torch.bool)
    mask[0, 32:] = False
    for each in (None, mask):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = generator.perturb(x, each)
        assert out.dtype == torch.float32
        assert (out - x).abs().max() <= generator.epsilon + 1e-6
        assert (out - generator.perturb(x, each)).abs().max() < 0.2 * generator.epsilon


def reference_unet(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """The original network, written out with functions from the description of its checkpoint."""

    def norm(name: str, y: Tensor) -> Tensor:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        y = (y - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return y * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    def conv(name: str, y: Tensor, stride: int = 1) -> Tensor:
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], stride, padding=1)

    def down(name: str, y: Tensor, stride: int) -> Tensor:
        y = norm(f"{name}.net.1", conv(f"{name}.net.0", y, stride)).clamp(min=0)
        return norm(f"{name}.net.4", conv(f"{name}.net.3", y)).clamp(min=0)

    def up(name: str, y: Tensor, skip: Tensor) -> Tensor:
        y = F.interpolate(y, skip.shape[2:], mode="bilinear", align_corners=False)
        return norm(f"{name}.bn", conv(f"{name}.conv", y)).clamp(min=0) + skip

    first = down("down1", x, 1)
    second = down("down2", first, 2)
    third = down("bottleneck", down("down3", second, 2), 1)
    return conv("out_conv", up("up1", up("up2", third, second), first))


def test_the_original_network_has_its_names_shapes_and_values() -> None:
    generator = build_generator("unet").eval()
    state = generator.state_dict()
    blocks = {"down1": (3, 32), "down2": (32, 64), "down3": (64, 128), "bottleneck": (128, 128)}
    for name, (inside, out) in blocks.items():
        assert state[f"{name}.net.0.weight"].shape == (out, inside, 3, 3)
        assert state[f"{name}.net.3.weight"].shape == (out, out, 3, 3)
        assert state[f"{name}.net.1.running_var"].shape == state[f"{name}.net.4.running_var"].shape == (out,)
    assert state["up2.conv.weight"].shape == (64, 128, 3, 3)
    assert state["up1.conv.weight"].shape == (32, 64, 3, 3)
    assert state["out_conv.weight"].shape == (3, 32, 3, 3)
    assert {name.split(".")[0] for name in state} == {*blocks, "up2", "up1", "out_conv"}

    with torch.random.fork_rng():
        torch.manual_seed(1)
        for name, value in state.items():
            if name.endswith(("running_var", "bn.weight", "1.weight", "4.weight")):
                value.copy_(torch.rand(value.shape) + 0.5)
            elif value.is_floating_point() and value.ndim == 1:
                value.copy_(0.3 * torch.randn(value.shape))
    for size in [(32, 48), (29, 43)]:
        x = images(2, *size)
        assert torch.allclose(generator(x), reference_unet(state, x), atol=1e-4)


def test_a_copy_is_independent() -> None:
    generator, x = strong(), images(1, 32, 32)
    other = copy.deepcopy(generator)
    before = other.perturb(x)
    nn.init.zeros_(generator.out.weight)  # type: ignore[union-attr, arg-type]
    assert torch.equal(other.perturb(x), before)
    assert torch.allclose(generator.perturb(x), x, atol=1e-6)


def test_the_architectures_are_of_the_base_class() -> None:
    for arch in ("light", "unet"):
        generator = build_generator(arch, 0.2, (8, 16, 24))
        assert isinstance(generator, Generator)
        assert generator.config() == {"arch": arch, "epsilon": 0.2, "widths": [8, 16, 24]}


class Pipeline(nn.Module):
    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.front, self.layers = generator, nn.ModuleDict({"again": generator})


@pytest.mark.parametrize("arch", ["light", "unet"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda generator: nn.ModuleDict({"g": generator}),
        lambda generator: nn.Sequential(nn.Identity(), generator),
        Pipeline,
        lambda generator: torch.optim.swa_utils.AveragedModel(generator),
        lambda generator: torch.compile(generator),
        nn.DataParallel,
    ],
)
def test_it_is_saved_and_loaded_inside_another_module(arch: str, wrap, tmp_path) -> None:  # type: ignore[no-untyped-def]
    first, second = wrap(strong(arch)), wrap(strong(arch, seed=1))
    torch.save(first.state_dict(), tmp_path / "whole.pth")
    second.load_state_dict(torch.load(tmp_path / "whole.pth", weights_only=True))
    one, two = (next(m for m in whole.modules() if isinstance(m, Generator)) for whole in (first, second))
    x = images(1, 33, 40)
    assert torch.equal(one.perturb(x), two.perturb(x))
    assert not torch.equal(strong(arch, seed=1).perturb(x), two.perturb(x))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"arch": "ligth"}, "Did you mean 'light'"),
        ({"arch": "Light"}, "Did you mean 'light'"),
        *(({"epsilon": value}, "from 0 to 4.5") for value in (-0.1, 5, 1e300)),
        *(({"epsilon": value}, "finite number") for value in (float("nan"), float("inf"), "0.1", None, True)),
        *(({"widths": value}, "a multiple of 8 from 8 to 2048") for value in ((8, 8, 12), (16000, 8, 8), (0, 8, 8))),
        ({"widths": (8, 16)}, "it should be a list of 3"),
        *(({"widths": value}, "widths") for value in ("abc", 8, (8.0, 8, 8), (2**70, 8, 8), (-8, 8, 8), (True, 8, 8))),
        ({"arch": "unet", "widths": (1, 2, 0)}, "a whole number from 1 to 2048"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(FaapError, match=said):
        build_generator(**arguments)  # type: ignore[arg-type]
    if "epsilon" in arguments:
        generator = build_generator()
        with pytest.raises(FaapError, match=said):
            generator.epsilon = arguments["epsilon"]  # type: ignore[assignment]
        assert generator.epsilon == 0.1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(3, 8, 8), r"the image is Tensor torch.float32 \(3, 8, 8\); it should be a tensor \(B, 3, H, W\)"),
        (torch.zeros(2, 8, 8, 3), r"\(2, 8, 8, 3\)"),
        (torch.zeros(2, 4, 8, 8), r"\(2, 4, 8, 8\)"),
        (torch.zeros(2, 3, 0, 8), r"\(2, 3, 0, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "torch.uint8 .*; of pictures as they are see faap.apply"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int64), "torch.int64"),
        (np.zeros((2, 3, 8, 8), np.float32), "ndarray float32"),
        ([0.5], "the image is list"),
    ],
)
def test_what_is_no_batch_of_normalised_images_is_refused(given: Any, said: str) -> None:
    class Own(Generator):
        arch, WIDTHS = "own", (8, 8, 8)

        def forward(self, pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None = None) -> torch.Tensor:
            return torch.zeros(1)

    for generator in (build_generator(), build_generator("unet"), Own()):
        with pytest.raises(FaapError, match=said):
            generator.perturb(given)


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (2, 1, 8, 8), (2, 8, 4), (7,)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for mask in (torch.ones(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool), np.ones((2, 8, 8), bool)):
        with pytest.raises(FaapError, match=r"the mask is .*; it should be a tensor \(2, 8, 8\), True where the image"):
            build_generator("unet").perturb(torch.zeros(2, 3, 8, 8), mask)  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", ["light", "unet"])
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_generator_in_half_precision_takes_a_mask(arch: str, kind: torch.dtype) -> None:
    generator, x, mask = strong(arch).eval(), images(2, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    mask[0, 20:] = False
    wanted = generator.perturb(x, mask)
    out = generator.to(kind).perturb(x.to(kind), mask)
    assert out.dtype == kind
    assert (out - wanted).abs().max() < 0.3 * generator.epsilon


def test_a_saved_generator_is_read_in_float32_whatever_torchs_default() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        generator = faap.load_generator("promenade")
    finally:
        torch.set_default_dtype(torch.float32)
    assert {value.dtype for value in generator.parameters()} == {torch.float32}
