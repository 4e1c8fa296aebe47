"""Recorded gradients: the bits of the function itself, or no recording."""

import gc
import weakref

import pytest
import torch

import gradlogp as glp
from gradlogp.calculus.recording import COMPARED, EVERY, FIRST, Recorded, _Program
from gradlogp.calculus.reverse import GradientField

DATA = torch.linspace(-1, 2, 30, dtype=torch.float64)
USED = FIRST + COMPARED


def regression(x):
    residual = DATA - x[:, :1] - x[:, 1:2] * DATA.square()
    likelihood = -residual.square().sum(1) * (-2 * x[:, 2]).exp() / 2 - 30 * x[:, 2]
    return likelihood - x.square().sum(1) / 200 + x[:, 2] - (x[:, 2].exp() / 5).square().log1p()


def factorised(x):
    K = x[:, :1, None].exp() * torch.eye(3) + 0.1 * x[:, 1:2, None]
    L = torch.linalg.cholesky(K)
    return -L.diagonal(dim1=1, dim2=2).log().sum(1) - x.square().sum(1)


def written(x):  # fills its own tensor
    a = x.new_zeros(len(x), 3)
    a[:, 0], a[:, 1:] = x[:, 2], x[:, :2] * 2
    return -(a * torch.arange(1.0, 4.0)).square().sum(1)


def written_apart(x):  # into one that is made without x
    a = torch.zeros(len(x), 3)
    a[:, 1:] = x[:, :2].exp()
    return -a.square().sum(1) - x.square().sum(1)


def unnamed(x):
    law = torch.distributions.StudentT(5.0, x[:, :1], x[:, 1:2].exp(), validate_args=True)
    return law.log_prob(DATA).sum(1) - x.square().sum(1)


def one_row(x):
    return -(x * torch.tensor([1.0, 2.0, 3.0])).square().sum() + x.prod()


FUNCTIONS = [regression, factorised, written, written_apart, unnamed, torch.func.vmap(one_row)]


def asked(field, x):
    with torch.no_grad():
        return field.log_prob_and_score(x)


def points(generator, n=USED + 5, shape=(4, 3)):
    return [torch.randn(shape, generator=generator) / 2 for _ in range(n)]


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_bits_are_those_of_the_function(f, sign, generator):
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return f(x)

    field, plain = Recorded(counted, sign), GradientField(f, sign)
    for x in points(generator):
        for mine, theirs in zip(asked(field, x), asked(plain, x), strict=True):
            assert torch.equal(mine, theirs)
            assert not mine.requires_grad
        with torch.no_grad():
            assert torch.equal(field(x), plain(x))
    if f in (regression, factorised, written, written_apart):
        assert calls == USED + 1  # once more where it is recorded
    else:  # checks of arguments look at values, and the derivative of a product rounds otherwise
        assert calls > USED + 5


def test_nothing_is_done_twice_or_in_vain(monkeypatch, generator):
    steps = []
    needed = _Program._needed
    monkeypatch.setattr(
        _Program, "_needed", lambda self, ends: steps.append(needed(self, ends)) or steps[-1]
    )
    field = Recorded(regression)
    for x in points(generator):
        asked(field, x)
    whole, alone = steps
    assert len({repr(step[:3]) for step in whole}) == len(whole)
    assert not any(step.args[1:] == (1,) for step in whole if "mul" in str(step.function))
    assert len(alone) < len(whole) - 5  # sums and logarithms that only the value needs


def test_other_shapes_and_layouts_have_recordings_of_their_own(generator):
    field, plain = Recorded(regression), GradientField(regression)
    for x in points(generator):
        for y in (x, x[:1], x.mT.contiguous().mT):
            assert torch.equal(asked(field, y)[1], asked(plain, y)[1])
    assert len(field._tapes) == 3


def decides(x):
    return -x.square().sum(1) if (x > 0.4).any() else -2 * x.square().sum(1)


def draws(x):
    return -x.square().sum(1) + torch.rand(len(x))


def writes_outside(x, log=torch.zeros(1)):  # noqa: B008
    log += 1
    return -x.square().sum(1) * log.clamp(max=1)


@pytest.mark.parametrize("f", [decides, draws, writes_outside], ids=lambda f: f.__name__)
def test_what_cannot_be_repeated_is_called(f, generator):
    field, plain = Recorded(f), GradientField(f)
    for x in points(generator):
        torch.manual_seed(1)
        mine = asked(field, x)
        torch.manual_seed(1)
        assert torch.equal(mine[0], asked(plain, x)[0])
    assert all(tape.play is None for tape in field._tapes.values())


def test_values_read_behind_the_back_are_noticed_before_the_recording_is_used(generator):
    def f(x):
        return -x.square().sum(1) * (1 + x.detach().numpy().max())

    field, plain = Recorded(f), GradientField(f)
    for x in points(generator):
        assert torch.equal(asked(field, x)[0], asked(plain, x)[0])


def test_a_function_that_changes_is_an_error(generator):
    scale = 1.0

    def f(x):
        return -x.square().sum(1) * scale

    field = Recorded(f)
    x = torch.randn(2, 3, generator=generator)
    for i in range(FIRST + EVERY):
        scale = 1.0 if i < USED else 2.0
        if i < FIRST + EVERY - 1:
            asked(field, x)
    with pytest.raises(TypeError, match="changed during the run"):
        asked(field, x)


def test_an_operation_that_fails_says_so_itself(generator):
    field = Recorded(factorised)
    for x in points(generator, shape=(2, 2)):
        asked(field, x)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        asked(field, torch.tensor([[0.0, -30.0], [0.0, 0.0]]))
    with torch.no_grad(), pytest.raises(torch.linalg.LinAlgError, match="not positive-definite"):
        field(torch.tensor([[0.0, -30.0], [0.0, 0.0]]))
    x = torch.zeros(2, 2)
    assert torch.equal(asked(field, x)[0], factorised(x))


def test_numbers_that_are_not_finite(generator):
    field = Recorded(lambda x: -x.square().sum(1) + x[:, 0].log())
    for x in points(generator, FIRST + EVERY + 1):
        value = asked(field, x)[0]
        assert torch.equal(value.isnan(), x[:, 0] < 0)


def test_gradients_of_gradients_are_not_recorded(generator):
    field = Recorded(regression)
    for x in points(generator):
        asked(field, x)
    x = torch.randn(4, 3, generator=generator, requires_grad=True)
    (found,) = torch.autograd.grad(field(x).sum(), x)
    (exact,) = torch.autograd.grad(GradientField(regression)(x).sum(), x)
    assert torch.equal(found, exact)
    assert found.abs().sum() > 0


def test_the_data_are_let_go(generator):
    data = torch.randn(50, generator=generator)
    alive = weakref.ref(data)
    field = Recorded(lambda x, data=data: -(x[:, :1] - data).square().sum(1) - x.square().sum(1))
    for x in points(generator):
        asked(field, x)
    del field, data
    gc.collect()
    assert alive() is None


def test_recordings_leave_no_memory_behind(generator):
    """Functions of `torch.jit.trace` live as long as the process: 0.7 MB each, 11 MB here."""
    resource = pytest.importorskip("resource")

    def peak():  # in kB; in bytes on some systems
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for i in range(20):
        if i == 4:
            before = peak()
        field = Recorded(regression)
        for x in points(generator, USED + 2):
            asked(field, x)
    assert peak() < before + 8_000


def test_a_run_is_that_of_the_target_without_recordings():
    class Plain:
        event_shape = torch.Size([3])

        def __init__(self, target):
            self.log_prob, self.score = target.log_prob, target.score
            self.log_prob_and_score = target.log_prob_and_score

    target = glp.as_target(log_prob=regression, event_shape=(3,))
    kernel, x = glp.langevin.HMC(0.1, 3), torch.zeros(4, 3)
    chains = [
        glp.run(kernel, t, x, 30, generator=torch.Generator().manual_seed(3))
        for t in (target, Plain(target))
    ]
    assert torch.equal(chains[0].draws, chains[1].draws)
    assert chains[0].target is target
    calls = 0

    def counted(x):
        nonlocal calls
        calls += 1
        return -x.square().sum(1) / 2

    target = glp.as_target(log_prob=counted, event_shape=(2,))
    with torch.no_grad():
        glp.run(glp.langevin.MALA(0.5), target, torch.ones(2, 2), 200)
    assert USED < calls <= USED + 2
    calls = 0
    glp.run(glp.langevin.MALA(0.5), target, torch.ones(2, 2), 5)
    assert calls == 6  # the next run looks again
