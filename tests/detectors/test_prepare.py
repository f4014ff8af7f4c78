"""A prepared model of every family computes what the model did, with statistics, masks and heads that matter."""

import copy
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from detectors.tiny_families import CONFIGS, SIDE, build
from faap.detectors import FAMILIES
from faap.detectors.prepare import fold_norms, prepare


class Doubles(TorchFunctionMode):
    """Whatever asks for float32 gets float64: most families keep something in float32, whatever their weights are."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args = [torch.float64 if value is torch.float32 else value for value in args]
        kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


@contextmanager
def float64():
    torch.set_default_dtype(torch.float64)
    try:
        with Doubles():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(params=[*CONFIGS, "detr_bottleneck", "conditional_softmax"])
def case(request):
    return request.param


@pytest.fixture
def family(case):
    known = {"detr_bottleneck": "detr", "conditional_softmax": "conditional_detr"}
    return FAMILIES[known[case] if case in known else CONFIGS[case][0]]


@pytest.fixture
def model(case, family, tiny):
    """The library's model."""
    if case in CONFIGS:
        model = build(case)
    else:
        model = tiny("detr", "bottleneck") if case == "detr_bottleneck" else tiny("conditional_softmax")
    model.config.auxiliary_loss = family.aux in (0, 1)
    return model


@pytest.fixture
def images(family):
    """Two images and their mask; the second is smaller where the family can tell padding."""
    mask = torch.ones(2, SIDE, SIDE, dtype=torch.bool)
    if family.reads_mask:
        mask[1, 30:], mask[1, :, 40:] = False, False  # half of the cells at stride 32 are left
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(5)) * mask[:, None], mask


def unprepared(model):
    """A copy of the model with its plain attention."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


def outputs_and_gradient(detector, pixels, mask):
    """All outputs, and the gradient at the pixels of a sum of them with random weights."""
    pixels = pixels.clone().requires_grad_()
    out = detector(pixels, mask)
    outputs = [out.logits, out.boxes, out.features, *(tensor for layer in out.aux for tensor in layer)]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(value.shape, generator=generator, dtype=value.dtype) for value in outputs]
    return outputs, torch.autograd.grad(outputs, pixels, weights)[0]


def relative(value, truth):
    assert value.dtype == truth.dtype
    return ((value - truth).abs().max() / truth.abs().max()).item()


def test_outputs_and_input_gradient_are_exactly_the_librarys_in_float64(model, wrap, images):
    model = model.double()
    plain = wrap(unprepared(model))
    pixels, mask = images[0].double(), images[1]
    with float64():
        truths, true_gradient = outputs_and_gradient(plain, pixels, mask)
        values, gradient = outputs_and_gradient(wrap(prepare(model)), pixels, mask)
    assert truths[0].dtype == torch.float64
    assert all(relative(value, truth) < 1e-12 for value, truth in zip(values, truths, strict=True))
    assert relative(gradient, true_gradient) < 1e-12


def test_they_differ_by_rounding_in_float32(model, wrap, images):
    plain = wrap(unprepared(model))
    truths, true_gradient = outputs_and_gradient(plain, *images)
    values, gradient = outputs_and_gradient(wrap(prepare(model)), *images)
    assert all(relative(value, truth) < 1e-5 for value, truth in zip(values, truths, strict=True))
    assert relative(gradient, true_gradient) < 1e-4


# calls of fused attention in the tiny models; deformable attention has no such kernel, and DAB-DETR none in the library
ATTENTION = {
    "detr": 1 + 2 * 3,  # an encoder layer; self- and cross-attention of the decoder's
    "conditional_detr": 1 + 2 * 3,
    "dab-detr": 0,
    "deformable_detr": 3,
    "rt_detr": 1 + 3,
    "rt_detr_v2": 1 + 3,
    "d_fine": 1 + 3,
    "lw_detr": 3 + 3,  # the backbone is a transformer
    "rf_detr": 3 + 3,
    "yolos": 2,
}


def test_no_norm_is_left_and_attention_is_fused_where_it_can_be(model, wrap, images, monkeypatch):
    detector, calls = wrap(prepare(model)), []
    assert not [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(0) or attend(*a, **k))
    detector(*images)
    assert len(calls) == ATTENTION[model.config.model_type]


class Block(nn.Module):
    """A convolution and a norm that are put together in ways that a list of children does not tell."""

    def __init__(self, way):
        super().__init__()
        self.way = way
        self.first, self.norm, self.relu = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()
        self.norm.running_mean.normal_(generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        if self.way == "norm before":
            return self.relu(self.first(self.norm(x)))
        if self.way == "read by another":
            middle = self.first(x)
            return self.relu(self.norm(middle) + middle)
        if self.way == "relu on the input":
            return self.norm(self.first(x)) + self.relu(x)
        if self.way == "used elsewhere":
            return 2 * x
        if self.way == "weight read":
            return self.relu(self.norm(self.first(x))) * self.first.weight.mean()
        return [self.relu(self.norm(self.first(x)))]


@pytest.mark.parametrize("way", ["norm before", "read by another", "used elsewhere", "weight read"])
def test_a_norm_that_cannot_be_folded_stays(way):
    block = Block(way)
    before = copy.deepcopy(block.state_dict())
    fold_norms(block)
    assert isinstance(block.norm, nn.BatchNorm2d)
    assert not block.relu.inplace
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_a_relu_that_reads_something_else_overwrites_nothing():
    block = Block("relu on the input").eval()
    images = torch.randn(1, 3, 5, 5)
    expected, kept = block(images), images.clone()
    fold_norms(block)
    assert isinstance(block.norm, nn.Identity)
    assert not block.relu.inplace
    torch.testing.assert_close(block(images), expected)
    assert torch.equal(images, kept)


class Place(nn.Module):
    """A child that is called without a tensor."""

    def forward(self):
        return 1.0


class Keeping(nn.Module):
    """Keeps what its convolution made, and adds something that has nothing to do with it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.place, self.kept = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Place(), None

    def forward(self, x):
        self.kept = self.conv(x)
        return self.norm(self.kept) + self.place()


def test_looking_at_a_module_leaves_nothing_in_it():
    module = Keeping().eval()
    images = torch.randn(1, 3, 5, 5)
    expected = module(images)
    module.kept = None
    fold_norms(module)
    assert module.kept is None
    torch.testing.assert_close(module(images), expected)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class BatchNormAct2d(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    "pair",
    [
        (Scaled(3, 3, 1), nn.BatchNorm2d(3)),
        (nn.Conv2d(3, 3, 1), BatchNormAct2d(3)),
        (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)),
        (nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ],
)
def test_what_does_more_than_its_kind_or_lacks_something_is_left_alone(pair):
    model = nn.Sequential(*pair)
    fold_norms(model)
    assert list(model) == list(pair)


def test_a_convolution_with_two_owners_keeps_its_norms():
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(3)), nn.Sequential(shared, nn.BatchNorm2d(3)))
    fold_norms(model)
    assert all(isinstance(branch[1], nn.BatchNorm2d) for branch in model)


def test_convolutions_with_one_weight_are_folded_apart():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(2))).eval()
    model[1][0].weight = model[0][0].weight
    model[0][1].running_var.fill_(4)
    images = torch.randn(1, 3, 5, 5)
    expected = model(images)
    fold_norms(model)
    assert not [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(model(images), expected)


def test_a_block_that_returns_several_maps_is_folded():
    block = Block("a list").eval()
    images = torch.randn(1, 3, 5, 5)
    (expected,) = block(images)
    fold_norms(block)
    assert isinstance(block.norm, nn.Identity)
    assert block.relu.inplace
    torch.testing.assert_close(block(images)[0], expected)


@pytest.mark.parametrize("kind", ["detr", "conditional_softmax"])
def test_the_librarys_own_model_sees_its_mask_after_the_detector_saw_none(kind, tiny, wrap, batch):
    """What tells the two apart is kept between calls, and must not outlive one."""
    pixels, mask = batch
    detector, untouched = wrap(prepare(tiny(kind))), prepare(tiny(kind))
    detector(pixels)
    with torch.no_grad():
        found, wanted, whole = (
            model(pixels, pixel_mask=given).logits
            for model, given in ((detector.model, mask.long()), (untouched, mask.long()), (untouched, None))
        )
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        assert (wanted - whole).abs().max() > 1e-2
        # and may be called in parts, without one
        tokens = torch.randn(2, 12, 32)
        part = {"inputs_embeds": tokens, "spatial_position_embeddings": torch.zeros_like(tokens)}
        assert detector.model.model.encoder(**part).last_hidden_state.shape == tokens.shape
