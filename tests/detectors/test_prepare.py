"""A prepared model computes what the model did, on padded batches, with batch-norm statistics that matter."""

import copy

import pytest
import torch

from faap.detectors.prepare import prepare


def outputs_and_gradient(detector, pixels, mask):
    pixels = pixels.clone().requires_grad_()
    out = detector(pixels, mask)
    scores = out.logits.sigmoid().sum() + out.boxes.square().sum() + out.features.square().sum()
    (gradient,) = torch.autograd.grad(scores, pixels)
    layers = [tensor for layer in out.aux for tensor in layer]
    return [out.logits, out.boxes, out.features, *layers], gradient


def relative(value, truth):
    return ((value - truth).abs().max() / truth.abs().max()).item()


@pytest.fixture(params=["basic", "bottleneck"])
def pair(request, kind, tiny, wrap):
    """The same model before (with the library's plain attention) and after, in both as a detector."""
    model = tiny(kind, request.param)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation({"": "eager"})
    return wrap(plain), wrap(prepare(model))


def test_outputs_stay_to_one_millionth(pair, batch):
    before, after = (outputs_and_gradient(detector, *batch)[0] for detector in pair)
    assert all(relative(value, truth) < 2e-6 for value, truth in zip(after, before, strict=True))


def test_outputs_and_input_gradient_are_the_same_function(pair, batch):
    # In float64, where rounding cannot push a ReLU over its kink and so change the gradient of a single unit.
    pixels, mask = batch[0].double(), batch[1]
    plain, prepared = (outputs_and_gradient(copy.deepcopy(detector).double(), pixels, mask) for detector in pair)
    # The prepared weights were rounded to float32 when they were folded.
    assert all(relative(value, truth) < 1e-6 for value, truth in zip(prepared[0], plain[0], strict=True))
    assert relative(prepared[1], plain[1]) < 1e-5


def test_float64_folding_is_exact(kind, tiny, wrap, batch):
    model = tiny(kind).double()
    plain = wrap(copy.deepcopy(model))
    values, gradient = outputs_and_gradient(wrap(prepare(model)), batch[0].double(), batch[1])
    truths, true_gradient = outputs_and_gradient(plain, batch[0].double(), batch[1])
    assert all(relative(value, truth) < 1e-12 for value, truth in zip(values, truths, strict=True))
    assert relative(gradient, true_gradient) < 1e-12


def test_no_batch_norm_is_left_and_weights_lie_channels_last(kind, tiny):
    model = prepare(tiny(kind))
    assert not [name for name, module in model.named_modules() if "BatchNorm" in type(module).__name__]
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) > 5
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in convolutions)
    assert model.config._attn_implementation == "sdpa"
