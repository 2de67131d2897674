import pytest
import torch
from torch import nn

from udp_fast.methods.weights import frozen, preserved


@pytest.fixture
def module():
    """In train mode but for its normalisation, as one is fine-tuned; a gradient is there already."""
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5)))
    module.register_buffer("hidden", torch.ones(2), persistent=False)
    module[1][0].eval()
    module[0].weight.requires_grad_(False)
    module[0].bias.grad = torch.full((4,), 7.0)
    return module


def modes(module):
    return [part.training for part in module.modules()]


@pytest.mark.parametrize("context", [preserved, frozen])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_modes_and_flags_of_every_part_come_back(context, fails, module):
    before = modes(module)
    assert before == [True, True, True, False, True]
    wanted = [p.requires_grad for p in module.parameters()]
    try:
        with context(module):
            module.train(context is preserved)
            module.requires_grad_(context is preserved)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert modes(module) == before
    assert [p.requires_grad for p in module.parameters()] == wanted


def test_frozen_is_eval_throughout(module):
    with frozen(module):
        assert not any(modes(module))
        assert not any(p.requires_grad for p in module.parameters())


def test_preserved_restores_weights_and_buffers(module):
    tensors = [*module.parameters(), *module.buffers()]
    before = [t.detach().clone() for t in tensors]
    with preserved(module), torch.no_grad():
        for tensor in tensors:
            tensor.add_(1)
    assert all(map(torch.equal, tensors, before))


def test_preserved_keeps_the_callers_gradients(module):
    gradient = module[0].bias.grad
    with preserved(module):
        assert all(p.grad is None for p in module.parameters())
        module(torch.ones(1, 3, 2, 2)).sum().backward()
        assert module[0].bias.grad is not gradient
    assert module[0].bias.grad is gradient
    assert gradient.eq(7).all()
    assert module[1][0].weight.grad is None
