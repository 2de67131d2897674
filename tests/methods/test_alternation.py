import pytest
import torch

from udp_fast.diffusion import NoiseSchedule, PixelDenoiser
from udp_fast.methods import METHODS, Settings, protect
from udp_fast.methods.random_noise import random_signs_
from udp_fast.ops import quantize
from udp_fast.ops.noise import Stream

QUICK = {
    "steps": 2,
    "rounds": 2,
    "draws": 2,
    "surrogate_steps": 2,
    "surrogate_batch": 2,
    "surrogate_crop": 16,
    "tile": 24,
    "overlap": 4,
}
ITERATIVE = ("udp", "eudp")


def run(items, denoiser, method="eudp", on_progress=None, **overrides):
    settings = Settings.for_method(method, **{**QUICK, **overrides})
    protect(items, method=method, settings=settings, denoiser=denoiser, on_progress=on_progress)
    return [item.delta.clone() for item in items]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("eps", ["8/255", "3/255", "0"])
def test_budget_and_range(method, eps, make_items, denoiser):
    items = make_items(1, 2)
    run(items, denoiser, method, eps=eps)
    budget = Settings(eps=eps).eps
    for item in items:
        assert item.delta.dtype == torch.float16
        assert item.delta.double().abs().max() <= budget.eps
        image = item.original.double() / 255 + item.delta.double()
        assert image.min() >= -1e-4
        assert image.max() <= 1 + 1e-4
        written = quantize(item.delta[None].float(), item.original[None], eps=budget)[0]
        change = (written.int() - item.original.int()).abs().max()
        assert change <= budget.levels
        if method != "none" and budget.levels:
            assert change == budget.levels


@pytest.mark.parametrize("method", ITERATIVE)
def test_raises_the_loss_above_random_noise(method, make_items, denoiser):
    """White-box: measured by the very model that was attacked, at equal noise."""
    from udp_fast.evaluate.denoising import surrogate_loss

    losses = {}
    for name in (method, "random", "none"):
        items = make_items(1, 2, 3)
        run(items, denoiser, name, surrogate_steps=0, steps=6, draws=4)
        written = [
            quantize(i.delta[None].float(), i.original[None], eps=Settings().eps)[0] for i in items
        ]
        losses[name] = surrogate_loss(
            written, denoiser, seed=3, image_ids=[i.image_id for i in items], draws=16
        )
    gain = losses[method] - losses["random"]
    assert (gain > 0).all()
    assert gain.mean() > 2 * (losses["random"] - losses["none"]).mean().abs()


@pytest.mark.parametrize("method", ITERATIVE)
def test_weights_are_frozen_during_pgd_and_restored(method, make_items, denoiser):
    denoiser.module[0].bias.requires_grad_(False)
    before = {k: v.clone() for k, v in denoiser.module.state_dict().items()}
    changed = []
    phases = []

    def watch(progress):
        phases.append((progress.phase, len(denoiser.wanted_weight_gradients)))
        state = denoiser.module.state_dict()
        changed.append(not all(torch.equal(state[k], before[k]) for k in before))
        if progress.phase == "perturb":
            assert not denoiser.module.training
            assert all(p.grad is None for p in denoiser.module.parameters())

    run(make_items(1), denoiser, method, on_progress=watch)
    assert all(changed)  # the surrogate is trained before the first PGD step
    calls_before = 0
    for phase, calls in phases:
        wanted = denoiser.wanted_weight_gradients[calls_before:calls]
        assert wanted
        assert all(w == (phase == "surrogate") for w in wanted)
        calls_before = calls
    assert all(torch.equal(v, before[k]) for k, v in denoiser.module.state_dict().items())
    assert [p.requires_grad for p in denoiser.module.parameters()] == [True, False, True, True]


@pytest.mark.parametrize("phase", ["surrogate", "perturb"])
def test_interrupt_restores_the_weights(phase, make_items, denoiser):
    before = {k: v.clone() for k, v in denoiser.module.state_dict().items()}

    def stop(progress):
        if progress.round == 1 and progress.phase == phase:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_items(1), denoiser, on_progress=stop)
    assert all(torch.equal(v, before[k]) for k, v in denoiser.module.state_dict().items())
    assert all(p.requires_grad for p in denoiser.module.parameters())
    assert all(p.grad is None for p in denoiser.module.parameters())


def test_same_seed_same_result_in_any_order(make_items, denoiser):
    forward = run(make_items(1, 2, 3), denoiser)
    backward = run(make_items(3, 2, 1), denoiser)
    assert all(map(torch.equal, forward, reversed(backward)))
    other = run(make_items(1, 2, 3), denoiser, seed=1)
    assert not any(map(torch.equal, forward, other))


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_matter(threads, make_items, denoiser):
    used = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run(make_items(1), denoiser)
        torch.set_num_threads(threads)
        several = run(make_items(1), denoiser)
    finally:
        torch.set_num_threads(used)
    # Convolutions may sum in another order: the sign of a gradient next to zero can differ.
    assert (one[0] != several[0]).float().mean() < 1e-2


def test_udp_and_eudp_differ(make_items, denoiser):
    assert not torch.equal(
        run(make_items(1), denoiser, "udp")[0], run(make_items(1), denoiser, "eudp")[0]
    )
    # With gamma = 0 the law of EUDP is uniform: the same method.
    assert torch.equal(
        run(make_items(1), denoiser, "udp")[0], run(make_items(1), denoiser, "eudp", gamma=0.0)[0]
    )


@pytest.mark.parametrize("method", ["udp", "eudp", "random"])
def test_mask(method, make_items, denoiser):
    mask = torch.zeros(1, 40, 33, dtype=torch.uint8)
    mask[:, 10:20, 5:30] = 1
    items = make_items(1, mask=mask)
    run(items, denoiser, method)
    outside = items[0].delta[:, mask[0] == 0]
    inside = items[0].delta[:, mask[0] == 1]
    assert outside.eq(0).all()
    assert inside.ne(0).float().mean() > 0.9


@pytest.mark.parametrize("size", [(32, 32), (33, 70), (9, 5)], ids=str)
def test_any_size(size, make_items, denoiser):
    (delta,) = run(make_items(1, size=size), denoiser)
    assert delta.shape == (3, *size)
    assert delta.ne(0).float().mean() > 0.5


def test_progress_counts_to_the_end(make_items, denoiser):
    seen = []
    run(make_items(5, 4), denoiser, on_progress=seen.append)
    assert [p.total_steps_done for p in seen] == list(range(1, len(seen) + 1))
    assert {p.total_steps for p in seen} == {len(seen)} == {2 * (2 + 2 * 2)}
    assert [p.phase for p in seen[:3]] == ["surrogate", "surrogate", "perturb"]
    assert {p.image_id for p in seen} == {None, 4, 5}
    assert all(p.loss > 0 for p in seen)


def test_random_control_is_signs_that_follow_the_image(make_items):
    settings = Settings()
    first, again, other = *make_items(1), *make_items(1), *make_items(2)
    for item in (first, again, other):
        protect([item], method="random", settings=settings)
    assert torch.equal(first.delta, again.delta)
    interior = (first.original >= 8) & (first.original <= 247)
    signs = first.delta[interior].float() / settings.eps.eps
    assert (signs.abs() > 0.999).all()
    assert signs.mean().abs() < 0.1
    both = interior & (other.original >= 8) & (other.original <= 247)
    agreement = (first.delta[both] == other.delta[both]).float().mean()
    assert 0.4 < agreement < 0.6
    assert (first.delta[first.original == 0] >= 0).all()
    # The random start of the methods is other noise than the control.
    random_signs_(again, settings, stream=Stream.RANDOM_START)
    assert not torch.equal(first.delta, again.delta)


def test_none_clears(make_items):
    (item,) = make_items(1)
    item.delta.fill_(0.01)
    protect([item], method="none")
    assert item.delta.eq(0).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("surrogate_steps", [0, 1])
@pytest.mark.parametrize("method", ITERATIVE)
def test_every_prediction_type(method, surrogate_steps, prediction_type, make_items, denoiser):
    """From the alternation to the judge: the loss that is raised is that of the target."""
    from udp_fast.evaluate.denoising import tile_losses

    denoiser.prediction_type = prediction_type
    losses = []
    for name in ("none", method):
        (item,) = make_items(1)
        run([item], denoiser, name, surrogate_steps=surrogate_steps, steps=4)
        written = quantize(item.delta[None].float(), item.original[None], eps=Settings().eps)[0]
        t, loss = tile_losses(written, denoiser, seed=0, image_id=1, draws=4, tile=24)
        assert t.shape == loss.shape
        losses.append(loss.mean())
    assert losses[1] > losses[0]


@pytest.fixture
def dropout_denoiser():
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=16,
            block_out_channels=(8, 16),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            layers_per_block=1,
            norm_num_groups=4,
            add_attention=False,
            dropout=0.1,
        )
    return PixelDenoiser(unet.eval(), NoiseSchedule.linear())


def test_dropout_follows_the_seed_and_leaves_the_callers_generator_alone(
    make_items, dropout_denoiser
):
    losses = []

    def watch(progress):
        if progress.phase == "surrogate":
            losses.append(progress.loss)

    before = torch.get_rng_state()
    (first,) = run(make_items(1), dropout_denoiser, on_progress=watch)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)  # the caller's own draws are none of the seed's
    between = torch.get_rng_state()
    (again,) = run(make_items(1), dropout_denoiser, on_progress=watch)
    assert torch.equal(torch.get_rng_state(), between)
    assert torch.equal(first, again)
    assert losses[: len(losses) // 2] == losses[len(losses) // 2 :]


def test_dropout_differs_from_step_to_step(make_items, dropout_denoiser, monkeypatch):
    """One mask for all steps would train a smaller network instead of regularising this one."""
    states = []
    forward = dropout_denoiser.module.forward

    def watch(*args, **kwargs):
        if dropout_denoiser.module.training:
            states.append(torch.get_rng_state())
        return forward(*args, **kwargs)

    monkeypatch.setattr(dropout_denoiser.module, "forward", watch)
    run(make_items(1), dropout_denoiser)
    run(make_items(1), dropout_denoiser, seed=1)
    assert len(states) == 8  # two steps in each of two rounds, twice
    assert len({tuple(s.tolist()) for s in states}) == 8


def test_the_callers_draws_during_progress_are_its_own(make_items, dropout_denoiser):
    """Inside a callback torch's generator is the caller's, and advances."""
    drawn = []
    run(make_items(1), dropout_denoiser, on_progress=lambda _: drawn.append(float(torch.rand(()))))
    assert len(set(drawn)) == len(drawn)


def test_nothing_to_do():
    protect([], method="eudp")


def test_duplicate_ids(make_items, denoiser):
    with pytest.raises(ValueError, match="items: got two of one image_id, expected distinct"):
        run(make_items(1, 1), denoiser)


def test_unknown_method(make_items):
    with pytest.raises(
        ValueError, match="method: got 'x', expected one of eudp, udp, random, none"
    ):
        protect(make_items(1), method="x")


@torch.inference_mode()
def test_items_of_inference_mode_are_filled(make_items, denoiser):
    with torch.inference_mode(False):
        (usual,) = make_items(1)
        run([usual], denoiser)
    (item,) = make_items(1)
    delta = item.delta
    assert delta.is_inference()
    run([item], denoiser)
    assert item.delta is delta
    assert torch.equal(delta, usual.delta)
