"""Ways to be wrong that have happened to others, each with the test that has to catch it.

A mutant is a replacement in one source file. The first letter says where it comes from: M, a failure
seen in a published library; X, a slip of the same kind in a formula of our own.
"""

from typing import NamedTuple


class Mutant(NamedTuple):
    """Replace `old` by `new` in `file`; `test` must then fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "M1: the denoising target has the wrong sign",
        "objectives/denoising.py", "(b * score + eps).square()", "(b * score - eps).square()",
        "test_objectives.py::test_denoising_is_implicit_matching_of_the_noised_law",
    ),
    Mutant(
        "M2: the trace is divided by the dimension",
        "autodiff.py", "for _, diagonal in parts]).sum(0)", "for _, diagonal in parts]).mean(0)",
        "test_autodiff.py",
    ),
    Mutant(
        "M2: a unit sphere instead of one of radius √d",
        "autodiff.py", "radius = v[0].numel() ** 0.5", "radius = 1.0",
        "test_autodiff.py",
    ),
    Mutant(
        "M3: √h for √(2h)",
        "kernels/overdamped.py", "math.sqrt(2 * h * temperature)", "math.sqrt(h * temperature)",
        "test_kernels.py::test_ula_stationary_law",
    ),
    Mutant(
        "M3: √τ where the variance is τ",
        "kernels/overdamped.py", "math.sqrt(2 * h * temperature)", "math.sqrt(2 * h) * temperature",
        "test_kernels.py::test_ula_stationary_law",
    ),
    Mutant(
        "M3: the Metropolis ratio is reversed",
        "kernels/overdamped.py",
        "+ log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau)",
        "- log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau)",
        "test_kernels.py::test_mala_detailed_balance_pointwise",
    ),
    Mutant(
        "X: the Metropolis step is left out",
        "kernels/overdamped.py",
        "accepted = rand_like(acceptance, generator) < acceptance",
        "accepted = rand_like(acceptance, generator) < 2",
        "test_kernels.py::test_mala_keeps_an_asymmetric_law_and_ula_does_not",
    ),
    Mutant(
        "M4: σ for σ² in Tweedie's formula",
        "parametrization.py", "return -b * value if kind", "return -value if kind",
        "test_parametrization.py::test_predict_is_the_posterior_mean",
    ),
    Mutant(
        "M4: denoising at the level before",
        "transitions/annealed.py",
        "return predict(score, schedule, x, t)[0]",
        "return predict(score, schedule, x, t + 0.05 * (1 - t))[0]",
        "test_transitions.py::test_annealed_langevin_final_law",
    ),
    Mutant(
        "M5: the prior forgets the data's mean",
        "sampling.py", "alpha * mean.to(z) + (alpha**2", "(alpha**2",
        "test_sampling.py::test_prior_is_its_formula",
    ),
    Mutant(
        "M5: the prior forgets the data's variance",
        "sampling.py", "(alpha**2 * var.to(z) + sigma**2).sqrt()", "sigma",
        "test_sampling.py::test_prior_is_its_formula",
    ),
    Mutant(
        "M6: g for g²",
        "core.py", "return 2 * sigma * (d_sigma - self.f(t) * sigma)",
        "return (2 * sigma * (d_sigma - self.f(t) * sigma)).sqrt()",
        "test_schedules.py",
    ),
    Mutant(
        "X: sub-VP's σ is taken for a variance",
        "schedules.py", "return log_alpha.exp(), -torch.expm1(2 * log_alpha)",
        "return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()",
        "test_schedules.py",
    ),
    Mutant(
        "M7: a step size from the whole batch",
        "transitions/annealed.py", "h = self.relative_step * float(sigma_t) ** 2",
        "h = self.relative_step * float(sigma_t) ** 2 * float(1 + 0.01 * x.mean().tanh())",
        "test_sampling.py::test_a_sample_does_not_feel_its_batch_mates",
    ),
    Mutant(
        "M8: the divergence at the wrong time",
        "likelihood.py", "k4, l4 = velocity(y + h * k3, s)", "k4, l4 = velocity(y + h * k3, t)",
        "test_likelihood.py::test_fourth_order",
    ),
    Mutant(
        "M10: a score of another shape is broadcast",
        "core.py", "if out.shape != x.shape:", "if False:",
        "test_kernels.py::test_a_score_of_another_shape_is_never_broadcast",
    ),
    Mutant(
        "M11: data is clamped to [−1, 1]",
        "transitions/diffusion.py", "end = alpha_s * x0 + sigma_s * eps",
        "end = alpha_s * x0.clamp(-1, 1) + sigma_s * eps",
        "test_sampling.py::test_data_far_from_the_origin",
    ),
    Mutant(
        "M12: samples come from the raw weights",
        "training.py", "self.model.load_state_dict(self.averaged.module.state_dict())", "pass",
        "test_training.py::test_samples_come_from_the_averaged_weights",
    ),
    Mutant(
        "X: the average does not warm up",
        "settings.py", "return min(decay, (1 + n) / (10 + n))", "return decay",
        "test_training.py::test_decay_warms_up",
    ),
    Mutant(
        "M13: NaN where σ = 0",
        "core.py", "t = t.clamp(min=1e-12)", "t = t + 0",
        "test_schedules.py",
    ),
    Mutant(
        "M14: a likelihood without the Jacobian of the scaler",
        "pipeline.py", "result.log_prob.cpu() + model.log_det_encode()", "result.log_prob.cpu()",
        "test_pipeline.py::test_log_density_is_in_data_units",
    ),
    Mutant(
        "X: source and target time swapped in the ancestral mean",
        "transitions/diffusion.py", "mean = a * sigma_s**2 / sigma_t**2 * x",
        "mean = a * sigma_t**2 / sigma_s.clamp(min=1e-9) ** 2 * x",
        "test_transitions.py::test_ancestral_step_is_that_of_ddpm",
    ),
    Mutant(
        "X: Heun without its corrector",
        "transitions/diffusion.py", "(sigma_s - sigma_t) * (eps + eps_s) / 2",
        "(sigma_s - sigma_t) * eps",
        "test_transitions.py::test_order_of_convergence_on_a_gaussian",
    ),
    Mutant(
        "X: the posterior covariance forgets the spread of the means",
        "distributions/mixture.py", 'within + torch.einsum("bk,bki,bkj->bij", r, spread, spread)',
        "within",
        "test_mixture.py::test_posterior_by_quadrature",
    ),
    Mutant(
        "X: the noised covariance misses a square",
        "distributions/mixture.py", "Covariance(a**2 * self._cov.w + b**2, self._cov.U)",
        "Covariance(a**2 * self._cov.w + b, self._cov.U)",
        "test_mixture.py::test_noised_is_the_closed_form",
    ),
    Mutant(
        "X: a resumed run draws other noise",
        "training.py", 'self.noise.set_state(state["noise"])', "pass",
        "test_training.py::test_a_resumed_run_is_the_unbroken_run_bit_for_bit",
    ),
)  # fmt: skip
