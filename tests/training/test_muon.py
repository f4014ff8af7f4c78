"""Muon against an SVD, against torch's own (which takes matrices alone, in half precision), and against AdamW."""

import copy

import pytest
import torch
from torch import nn

from faap.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(3, 8, 30), (2, 30, 8), (1, 5, 5)])
def test_singular_values_become_about_one_and_the_directions_stay(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-4
    made = orthogonal(x)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    turned = left.mT @ made @ right.mT  # diagonal: nothing is turned
    values = turned.diagonal(dim1=1, dim2=2)
    assert torch.allclose(turned, torch.diag_embed(values), atol=1e-6)
    assert ((values > 0.6) & (values < 1.3)).all()


def test_a_matrix_moves_as_with_torchs_own():
    torch.manual_seed(0)
    mine, theirs = (nn.Parameter(w) for w in (torch.randn(12, 7), torch.empty(12, 7)))
    theirs.data.copy_(mine.data)
    here = Muon([mine], lr=0.02, weight_decay=0.1)
    there = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = mine.detach().clone()
    for step in range(6):
        mine.grad = torch.randn(12, 7, generator=torch.Generator().manual_seed(step))
        theirs.grad = mine.grad.clone()
        for each in (here, there):
            each.step()
    moved, wanted = mine.detach() - start, theirs.detach() - start
    # torch orthogonalises in bfloat16
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


def network():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 3).to(memory_format=torch.channels_last)
    )


def test_what_is_no_matrix_or_kept_apart_moves_as_with_adamw():
    mine, theirs = network(), network()
    options = {"lr": 0.01, "weight_decay": 0.1}
    here = Muon(mine.parameters(), apart=[mine[2].weight], **options)
    there = torch.optim.AdamW(theirs.parameters(), **options)
    for step in range(3):
        x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        gradients = []
        for net, optimizer in ((theirs, there), (mine, here)):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            gradients.append([p.grad.clone() for p in net.parameters()])
            for p, gradient in zip(net.parameters(), gradients[0], strict=True):
                p.grad = gradient.clone()
            optimizer.step()
            assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), gradients[0], strict=True))
    for (name, ours), wanted in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, wanted) == (name != "0.weight")


def test_a_convolution_moves_as_the_matrix_that_it_is():
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    conv = nn.Parameter(weight.clone().to(memory_format=torch.channels_last))
    flat = nn.Parameter(weight.flatten(1).clone())
    for each in (conv, flat):
        each.grad = torch.sin(each.detach())
        Muon([each], lr=0.1).step()
    assert torch.allclose(conv.detach().flatten(1), flat.detach(), atol=1e-6)


def test_weights_of_one_shape_are_worked_on_together_and_apart():
    a, b = (nn.Parameter(torch.randn(5, 3, generator=torch.Generator().manual_seed(i))) for i in (0, 1))
    alone = copy.deepcopy(a)
    for each in (a, b, alone):
        each.grad = each.detach().cos()
    Muon([a, b], lr=0.1).step()
    Muon([alone], lr=0.1).step()
    assert torch.allclose(a, alone, atol=1e-6)


def test_a_state_that_was_kept_goes_on_where_it_was():
    nets = [network() for _ in range(2)]
    optimizers = [Muon(net.parameters(), lr=0.01, apart=[net[2].weight]) for net in nets]

    def step(i, seed):
        optimizers[i].zero_grad()
        nets[i](torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        optimizers[i].step()

    step(0, 0)
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for i in (0, 1):
        step(i, 5)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
