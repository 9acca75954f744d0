"""Laws of the AAM-softmax head, and of the cosine to a teacher."""

from math import acos, cos, log, sin

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sv_sparse.models.heads import AAMSoftmax, margin_at, mean_cosine


def head(margin: float = 0.2, speakers: int = 5) -> AAMSoftmax:
    torch.manual_seed(0)
    return AAMSoftmax(8, speakers, scale=32.0, margin=margin)


def test_without_margin_it_is_the_softmax_of_scaled_cosines():
    one, x, y = head(0.0), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    loss, cosine = one(x, y)
    expected = F.cosine_similarity(x[:, None], one.weight[None], dim=2)
    torch.testing.assert_close(cosine, expected.detach())
    torch.testing.assert_close(loss, F.cross_entropy(32 * expected, y))


def test_the_margin_is_added_to_the_angle_of_the_target_alone():
    one, x, y = head(0.3), torch.randn(6, 8), torch.tensor([0, 1, 2, 3, 4, 0])
    cosine = F.cosine_similarity(x[:, None], one.weight[None], dim=2).detach()
    losses = []
    for row, speaker in zip(cosine, y, strict=True):
        logits = [32 * cos(acos(c) + 0.3 * (k == speaker)) for k, c in enumerate(row.tolist())]
        losses.append(-logits[speaker] + log(sum(torch.tensor(logits).double().exp().tolist())))
    assert one(x, y)[0].item() == pytest.approx(sum(losses) / 6, rel=1e-4)


def test_moving_the_margin_moves_the_loss():
    one, x, y = head(0.0), torch.randn(6, 8), torch.arange(6) % 5
    losses = []
    for margin in (0.0, 0.1, 0.2, 0.5):
        one.margin = margin
        losses.append(one(x, y)[0].item())
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]


@pytest.mark.parametrize("direction", [1.0, -1.0])
def test_an_embedding_on_its_own_row_or_opposite_gives_finite_gradients(direction):
    one = AAMSoftmax(192, 1000)
    x = (direction * 3 * one.weight.detach()[:500]).requires_grad_()
    loss, cosine = one(x, torch.arange(500))
    loss.backward()
    assert loss.isfinite()
    assert x.grad.isfinite().all()
    assert one.weight.grad.isfinite().all()
    assert cosine.abs().max() < 1


def test_the_penalty_keeps_growing_where_the_angle_would_pass_pi():
    one = head(0.5)
    cosines = torch.linspace(-1, 1, 2001)
    shifted = one._with_margin(cosines)
    assert (shifted.diff() > 0).all()


def test_it_computes_in_float32_under_autocast():
    one, x, y = head(), torch.randn(6, 8), torch.arange(6) % 5
    expected = one(x, y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss, cosine = one(x, y)
    assert loss.dtype == cosine.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_a_row_of_zeros_has_a_bounded_gradient():
    one = head()
    with torch.no_grad():
        one.weight[2] = 0
    one(torch.randn(6, 8), torch.arange(6) % 5)[0].backward()
    assert one.weight.grad[2].norm() < 1e5


def float64_loss(weight, x, y, *, scale=32.0, margin, sub_centers, topk, topk_margin):
    """The loss by its formulas, in NumPy."""
    unit_rows = weight / np.linalg.norm(weight, axis=1, keepdims=True)
    unit_x = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = (unit_x @ unit_rows.T).reshape(len(x), -1, sub_centers).max(axis=2)
    losses = []
    for row, speaker in zip(cosine, y, strict=True):
        angle = np.arccos(row)
        angle[speaker] += margin
        others = [k for k in np.argsort(-row) if k != speaker]
        angle[others[:topk]] -= topk_margin
        logits = scale * np.cos(angle)
        losses.append(np.log(np.exp(logits).sum()) - logits[speaker])
    return np.mean(losses)


@pytest.mark.parametrize(
    "settings",
    [
        {"sub_centers": 1, "topk": 2},
        {"sub_centers": 3, "topk": 0},
        {"sub_centers": 3, "topk": 2},
        {"sub_centers": 2, "topk": 99},
    ],
)
def test_sub_centers_and_the_nearest_others_follow_their_formulas_and_so_do_the_gradients(settings):
    settings = {"margin": 0.2, "topk_margin": 0.06, **settings}
    one, y = AAMSoftmax(8, 6, **settings), torch.tensor([0, 1, 2, 3, 4, 5, 0])
    x = torch.randn(7, 8, requires_grad=True)
    loss, cosines = one(x, y)
    assert cosines.shape == (7, 6)
    weight, inputs = one.weight.detach().double().numpy(), x.detach().double().numpy()
    assert loss.item() == pytest.approx(float64_loss(weight, inputs, y.numpy(), **settings), rel=1e-5)
    loss.backward()
    for gradient, value in ((one.weight.grad, weight), (x.grad, inputs)):
        expected = np.zeros_like(value)
        for place in np.ndindex(value.shape):
            sides = []
            for change in (1e-6, -1e-6):
                value[place] += change
                sides.append(float64_loss(weight, inputs, y.numpy(), **settings))
                value[place] -= change
            expected[place] = (sides[0] - sides[1]) / 2e-6
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-3, atol=1e-4)


def test_by_default_the_loss_is_the_one_without_sub_centers_and_topk_to_the_last_bit():
    one, x, y = head(0.2), torch.randn(6, 8), torch.arange(6) % 5
    cosine = F.linear(F.normalize(x), F.normalize(one.weight)).clamp(-1 + 1e-6, 1 - 1e-6)
    target = cosine.gather(1, y[:, None])
    shifted = target * cos(0.2) - (1 - target * target).sqrt() * sin(0.2)
    expected = F.cross_entropy(32.0 * cosine.scatter(1, y[:, None], shifted), y)
    assert torch.equal(one(x, y)[0], expected)


def test_a_speaker_is_as_near_as_its_nearest_sub_center():
    one = AAMSoftmax(8, 4, margin=0.0, sub_centers=3)
    rows = one.weight.detach().unflatten(0, (4, 3))
    for center in range(3):
        _, cosines = one(rows[:, center], torch.arange(4))
        torch.testing.assert_close(cosines.diag(), torch.ones(4))


def test_the_nearest_others_cost_more_up_to_an_angle_of_zero():
    one = AAMSoftmax(8, 5, topk=2, topk_margin=0.3)
    cosines = torch.linspace(-0.9, 1, 2001)
    assert (one._with_topk_margin(cosines).diff() > 0).all()
    assert (one._with_topk_margin(cosines) > cosines).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sub_centers": 0}, "head.sub_centers must be a whole number, 1 or more, got 0"),
        ({"topk": -1}, "head.topk must be a whole number, 0 or more, got -1"),
        ({"topk_margin": -0.1}, "head.topk_margin must be at least 0 and below pi / 2, got -0.1"),
        ({"num_speakers": 1}, "at least 2 training speakers, got 1"),
        ({"scale": float("inf")}, "head.scale must be a finite number above 0, got inf"),
        ({"margin": float("nan")}, "head.margin must be .*, got nan"),
        ({"scale": 0.0}, "head.scale must be a finite number above 0, got 0.0"),
        ({"margin": 1.6}, "head.margin must be at least 0 and below pi / 2, got 1.6"),
    ],
)
def test_a_setting_out_of_bounds_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        AAMSoftmax(8, **{"num_speakers": 5} | settings)


def test_the_margin_schedule_checks_its_order():
    with pytest.raises(ValueError, match=r"start=0.5, end=0.3"):
        margin_at(0.4, 0.2, start=0.5, end=0.3)


def test_a_margin_that_starts_where_it_stands_is_a_step():
    assert [margin_at(p, 0.2, start=0.5, end=0.5) for p in (0.0, 0.49, 0.5)] == [0.0, 0.0, 0.2]


def test_the_cosine_to_a_teacher_and_its_gradient_are_those_of_the_formula():
    student, teacher = torch.randn(6, 8, requires_grad=True), 3 * torch.randn(6, 8)
    value = mean_cosine(student, teacher)
    value.backward()
    x, t = student.detach().double().numpy(), teacher.double().numpy()
    length = np.linalg.norm(x, axis=1, keepdims=True)
    direction = t / np.linalg.norm(t, axis=1, keepdims=True)
    cosine = (x * direction).sum(axis=1, keepdims=True) / length
    assert value.item() == pytest.approx(cosine.mean(), abs=1e-6)
    # The part of the teacher's direction that is perpendicular to the student, divided by the student's length.
    expected = (direction - cosine * x / length) / length / len(x)
    np.testing.assert_allclose(student.grad, expected, atol=1e-6)


def test_the_cosine_to_a_teacher_is_computed_in_float32_under_autocast():
    student, teacher = torch.randn(6, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = mean_cosine(student, teacher)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, F.cosine_similarity(student.double(), teacher.double()).mean().float())
