import numpy as np
import pytest
import torch
from scipy import stats

from udp_fast.diffusion import NoiseSchedule, TimestepSampler

SCHEDULE = NoiseSchedule.linear()


def test_eudp_is_the_root_of_the_schedule():
    p = TimestepSampler.eudp(SCHEDULE).probabilities
    expected = SCHEDULE.alphas_cumprod.double().sqrt()
    torch.testing.assert_close(p, expected / expected.sum(), rtol=1e-12, atol=0)
    assert p[0] > 10 * p[-1]


def test_gamma_zero_is_uniform():
    p = TimestepSampler.eudp(SCHEDULE, gamma=0).probabilities
    torch.testing.assert_close(p, TimestepSampler.uniform(1000).probabilities)


def many_draws(sampler, draw, *, rows, draws, repeats):
    taken = [getattr(sampler, draw)(rows, draws, seed=(7, i)) for i in range(repeats)]
    return torch.stack(taken)  # [repeats, draws, rows]


@pytest.mark.parametrize("draw", ["independent", "stratified"])
def test_marginal_is_the_law(draw):
    """Over repeats, the draws of one single row follow p: chi-square over 20 equal bins."""
    weights = torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    weights[10] = 0
    sampler = TimestepSampler(weights)
    t = many_draws(sampler, draw, rows=3, draws=2, repeats=4000)[:, :, 1].flatten()
    observed = torch.bincount(t, minlength=50).double()
    assert observed[10] == 0
    kept = sampler.probabilities > 0
    expected = sampler.probabilities * t.numel()
    p_value = stats.chisquare(observed[kept].numpy(), expected[kept].numpy()).pvalue
    assert p_value > 1e-4


def test_a_wrong_law_fails_the_chi_square():
    """The control of the test above: a slightly different law is told apart."""
    sampler = TimestepSampler.uniform(50)
    t = many_draws(sampler, "stratified", rows=3, draws=2, repeats=4000).flatten()
    tilted = np.linspace(0.9, 1.1, 50)
    expected = tilted / tilted.sum() * t.numel()
    assert stats.chisquare(torch.bincount(t, minlength=50).numpy(), expected).pvalue < 1e-6


def test_strata():
    """Draw d of each row lies in the d-th coarse stratum, the rows in distinct sub-strata."""
    rows, draws = 10, 4
    t = TimestepSampler.uniform(1000).stratified(rows, draws, seed=1)
    assert t.shape == (draws, rows)
    assert t.dtype == torch.int64
    for d in range(draws):
        within = t[d] - d * 250
        assert ((within >= 0) & (within < 250)).all()
        assert sorted((within // 25).tolist()) == list(range(rows))
    assert not torch.equal(t[0].argsort(), t[1].argsort())  # permuted anew for every draw


def test_rows_change_places_between_seeds():
    sampler = TimestepSampler.uniform(1000)
    first = [int(sampler.stratified(8, 1, seed=s)[0].argmin()) for s in range(40)]
    assert len(set(first)) > 4


@pytest.mark.parametrize("draw", ["independent", "stratified"])
def test_seed_decides(draw):
    take = getattr(TimestepSampler.eudp(SCHEDULE), draw)
    assert torch.equal(take(5, 3, seed=(1, 2)), take(5, 3, seed=(1, 2)))
    assert not torch.equal(take(5, 3, seed=(1, 2)), take(5, 3, seed=(1, 3)))
    assert not torch.equal(take(5, 3, seed=-1), take(5, 3, seed=1))


def test_empty_batches():
    sampler = TimestepSampler.uniform(10)
    assert sampler.stratified(0, 3, seed=0).shape == (3, 0)
    assert sampler.stratified(3, 0, seed=0).shape == (0, 3)


def test_never_draws_what_has_no_probability():
    law = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    t = TimestepSampler(law).stratified(200, 2, seed=0)
    assert set(t.flatten().tolist()) == {1, 3}


def test_importance_keeps_expectations():
    """The weighted mean of a function of t is the same with and without a proposal."""
    sampler = TimestepSampler.eudp(SCHEDULE)
    value = SCHEDULE.alphas_cumprod.double()
    exact = float((sampler.probabilities * value).sum())
    weighted = sampler.with_importance(torch.linspace(5, 1, 1000))
    t = weighted.stratified(500, 20, seed=0)
    estimate = float((weighted.weights(t).double() * value[t]).mean())
    assert estimate == pytest.approx(exact, rel=1e-3)
    unweighted = float(value[t].mean())
    assert abs(unweighted - exact) > 0.05 * exact  # without the weights it is another one
    assert torch.equal(sampler.weights(t), torch.ones(t.shape))


def test_a_good_proposal_lowers_the_variance():
    sampler = TimestepSampler.uniform(1000)
    value = 1 / (1 + torch.arange(1000.0).double())
    good = sampler.with_importance(value + 0.01)

    def spread(s):
        t = s.independent(4000, 1, seed=5)
        return float((s.weights(t).double() * value[t]).std())

    assert spread(good) < 0.3 * spread(sampler)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: TimestepSampler(torch.tensor([1, 2])), TypeError, "probabilities.*int64"),
        (lambda: TimestepSampler(torch.tensor([1.0, -1.0])), ValueError, "minimum -1"),
        (lambda: TimestepSampler(torch.zeros(3)), ValueError, "sum 0"),
        (lambda: TimestepSampler(torch.tensor([float("inf")])), ValueError, "sum inf"),
        (lambda: TimestepSampler(torch.ones(2, 2)), ValueError, r"\(2, 2\)"),
        (lambda: TimestepSampler.uniform(0), ValueError, "timesteps.*got 0"),
        (lambda: TimestepSampler.eudp(SCHEDULE, gamma=-1), ValueError, "gamma.*got -1"),
        (
            lambda: TimestepSampler(torch.ones(3), torch.tensor([1.0, 0.0, 1.0])),
            ValueError,
            "proposal.*1 of them zero",
        ),
    ],
)
def test_errors_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()
