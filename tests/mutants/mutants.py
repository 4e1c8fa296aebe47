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
        "objectives/denoising.py", "s + eps / b", "s - eps / b",
        "test_objectives.py::test_denoising_per_sample",
    ),
    Mutant(
        "M1: the same at a σ for all samples",
        "objectives/denoising.py", "s.add(eps, alpha=1 / b)", "s.add(eps, alpha=-1 / b)",
        "test_objectives.py::test_denoising_is_implicit_matching_of_the_noised_law",
    ),
    Mutant(
        "M2: the trace is divided by the dimension",
        "autodiff.py", "total = total + trace", "total = total + trace / x[0].numel()",
        "test_matching.py::test_exact_objectives_on_an_affine_score",
    ),
    Mutant(
        "M2: a unit sphere instead of one of radius √d",
        "autodiff.py", "v[0].numel() ** 0.5 / norm", "1.0 / norm",
        "test_autodiff.py",
    ),
    Mutant(
        "M3: √h for √(2h)",
        "kernels/steps.py", "math.sqrt(2 * h * temperature)", "math.sqrt(h * temperature)",
        "test_kernels.py::test_ula_stationary_law",
    ),
    Mutant(
        "M3: √τ where the variance is τ",
        "kernels/steps.py", "math.sqrt(2 * h * temperature)", "math.sqrt(2 * h) * temperature",
        "test_kernels.py::test_ula_stationary_law",
    ),
    Mutant(
        "M3: the Metropolis ratio is reversed",
        "kernels/overdamped.py",
        "+ log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau, P=P)",
        "- log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau, P=P)",
        "test_kernels.py::test_mala_detailed_balance_pointwise",
    ),
    Mutant(
        "X: the Metropolis step is left out",
        "kernels/steps.py",
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
        "likelihood.py", "k4, l4 = field(y + h * k3, s)", "k4, l4 = field(y + h * k3, t)",
        "test_likelihood.py::test_fourth_order",
    ),
    Mutant(
        "M10: a score of another shape is broadcast",
        "core.py", "if shape != tuple(x.shape):", "if False:",
        "test_kernels.py::test_a_score_of_another_shape_is_never_broadcast",
    ),
    Mutant(
        "M11: data is clamped to [−1, 1]",
        "transitions/flow.py", "end = alpha_s * x0 + sigma_s * eps",
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
        "transitions/ancestral.py", "mean = a * sigma_s**2 / sigma_t**2 * x",
        "mean = a * sigma_t**2 / sigma_s.clamp(min=1e-9) ** 2 * x",
        "test_transitions.py::test_ancestral_step_is_that_of_ddpm",
    ),
    Mutant(
        "X: Heun without its corrector",
        "transitions/flow.py", "(sigma_s - sigma_t) * (eps + eps_s) / 2",
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
    Mutant(
        "M2: sliced matching with reduced variance on the unit sphere",
        "autodiff.py", "v[0].numel() ** 0.5 / norm", "1.0 / norm",
        "test_matching.py::test_estimates_are_unbiased",
    ),
    Mutant(
        "M9: an energy is trained on the raw output of its network",
        "autodiff.py", "return _pull_back(at, torch.full_like(at.value, self.sign))",
        "return 0 * x + self.log_prob(x)[:, None]",
        "test_scores.py::test_an_energy_is_trained_as_an_energy",
    ),
    Mutant(
        "M9: the sign of an energy is not turned",
        "scores.py", "return GradientField(network, -1.0)", "return GradientField(network, 1.0)",
        "test_scores.py::test_without_a_schedule",
    ),
    Mutant(
        "M10: a score (B, 1, d) broadcasts against x (B, d)",
        "core.py", "if shape != tuple(x.shape):", "if out.numel() != x.numel():",
        "test_matching.py::test_bad_input_is_refused_by_name",
    ),
    Mutant(
        "X: explicit matching without the factor ½",
        "objectives/matching.py", "return 0.5 * sum_event((s - target)",
        "return sum_event((s - target)",
        "test_matching.py::test_exact_objectives_on_an_affine_score",
    ),
    Mutant(
        "X: a one-sided difference divided by 2h",
        "objectives/matching.py", "score(x - h * v)", "score(x)",
        "test_matching.py::test_estimates_are_unbiased",
    ),
    Mutant(
        "X: the slope of the boundary weight is left out",
        "objectives/boundary.py", "return loss if slope is None else", "return loss if True else",
        "test_matching.py::test_generalised_matching_is_its_formula",
    ),
    Mutant(
        "X: the second derivative of an activation misses a factor",
        "jets/entrywise.py", "g * (1 - g) * (2 + z * (1 - 2 * g))",
        "g * (1 - g) * (1 + z * (1 - 2 * g))",
        "test_jets.py::test_laplacian_and_its_gradients",
    ),
    Mutant(
        "X: importance times without their ratio",
        "objectives/denoising.py", "return loss if ratio is None else loss * ratio", "return loss",
        "test_objectives.py::test_importance_keeps_the_mean_and_lowers_the_variance",
    ),
    Mutant(
        "X: the exponential family forgets the Laplacian",
        "objectives/closed_form.py", "divergence.append(d_weighted.reshape(m, B, -1).sum(0))",
        "divergence.append(0 * d_weighted.reshape(m, B, -1).sum(0))",
        "test_closed_form.py",
    ),
    Mutant(
        "X: W2 of Gaussians without the means",
        "metrics/gaussians.py", "float(shift.square().sum() + (A", "float((A",
        "test_gaussian_metrics.py",
    ),
    Mutant(
        "X: the Jacobian's symmetric part taken for the rotation",
        "metrics/fields.py", "sum_event(((J - J.mT) / 2).square())",
        "sum_event(((J + J.mT) / 2).square())",
        "test_fields.py",
    ),
    Mutant(
        "X: one noise where the mean of two belongs",
        "kernels/unadjusted.py", "mean = (state.z + z) / 2", "mean = z",
        "test_kernels_overdamped.py::test_leimkuhler_matthews_has_the_gaussian_itself",
    ),
    Mutant(
        "X: noise multiplied by P instead of its root",
        "kernels/unadjusted.py", "P.apply(state.score), P.sqrt(z)", "P.apply(state.score), P.apply(z)",
        "test_kernels_overdamped.py::test_preconditioned_stationary_law",
    ),
    Mutant(
        "X: a preconditioner that depends on x without its divergence",
        "kernels/position.py", "+ tau * div", "+ 0 * div",
        "test_kernels_position.py::test_with_the_divergence_the_law_is_the_target",
    ),
    Mutant(
        "X: every part of a splitting lasts half a step",
        "kernels/underdamped.py", "self.step_size / self.scheme.count(letter)", "self.step_size / 2",
        "test_kernels_momentum.py::test_stationary_laws",
    ),
    Mutant(
        "X: friction without the factor 2 in its noise",
        "kernels/underdamped.py", "math.expm1(-2 * friction * t)", "math.expm1(-friction * t)",
        "test_kernels_momentum.py::test_stationary_laws",
    ),
    Mutant(
        "X: the momentum is not turned round on a rejection",
        "kernels/hamiltonian.py", "state._replace(momentum=-state.momentum)", "state",
        "test_kernels_hamiltonian.py::test_ghmc_is_reversible_up_to_the_sign_of_the_momentum",
    ),
    Mutant(
        "X: the edge of the support is taken for a divergence",
        "kernels/steps.py", "(outside | torch.isfinite(log_ratio)", "(torch.isfinite(log_ratio)",
        "test_kernels_conduct.py::test_outside_the_support_is_an_ordinary_rejection",
    ),
    Mutant(
        "X: a run goes on with fresh noise",
        "chains/resume.py", 'streams.set_state(saved["noise"][blocks].cpu())', "pass",
        "test_chains.py::test_parts_are_the_whole",
    ),
    Mutant(
        "X: an interrupted step has used up its noise",
        "chains/rounds.py", "part.streams.set_state(noise)", "pass",
        "test_chains.py::test_an_interrupt_keeps_what_was_drawn",
    ),
    Mutant(
        "X: the bias of the variance is taken relative to the biased one",
        "planning.py", "2 * relative_bias / ((1 + relative_bias) * curvature_L)",
        "2 * relative_bias / curvature_L",
        "test_adaptation.py::test_step_for_bias_is_exact_for_ula",
    ),
    Mutant(
        "X: dual averaging draws the acceptance the wrong way",
        "adaptation.py", "weight * (self.target - acceptance)", "weight * (acceptance - self.target)",
        "test_adaptation.py::test_dual_averaging_is_its_formula",
    ),
    Mutant(
        "X: Lanczos goes on with nothing where its space is exhausted",
        "planning.py", "torch.where(done[:, None], fresh, w)", "w",
        "test_adaptation.py::test_lanczos_finds_all_of_a_space_that_is_soon_exhausted",
    ),
    Mutant(
        "X: a minibatch score without the factor N/n",
        "posterior.py", "self.n_data / index.shape[-1]", "1.0",
        "test_stochastic.py::test_sgld_stationary_variance",
    ),
    Mutant(
        "X: swaps with the sign of the ratio turned",
        "kernels/tempering.py", "return -(1 / temperatures)", "return (1 / temperatures)",
        "test_tempering.py",
    ),
    Mutant(
        "X: particles that attract where they should repel",
        "kernels/particles.py", "@ state.score.flatten(1) + repulsion",
        "@ state.score.flatten(1) - repulsion",
        "test_particles.py",
    ),
    Mutant(
        "X: both cross terms of the Stein kernel with the wrong sign",
        "metrics/ksd.py", "- 2 * beta * (cross + d) / b", "- 2 * beta * (d - cross) / b",
        "test_ksd.py",
    ),
    Mutant(
        "X: a step for twice the bias",
        "planning.py", "return 2 * relative_bias / ((1", "return 4 * relative_bias / ((1",
        "test_adaptation.py",
    ),
    Mutant(
        "X: compiled normals of half the variance",
        "fused/noise.py", "np.sqrt(_f(-2) * log32(u))", "np.sqrt(_f(-1) * log32(u))",
        "test_fused.py",
    ),
    Mutant(
        "X: EDM's weight with σ_d for its square",
        "objectives/weights.py", "(sigma / (alpha * sigma_data)) ** 2",
        "(sigma / alpha) ** 2 / sigma_data",
        "test_objectives.py::test_weights_are_those_of_the_papers",
    ),
    Mutant(
        "X: a fused funnel forgets that the scale depends on v",
        "fused/known.py",
        "half * (square - rest)",
        "half * square",
        "test_fused.py::test_known_targets_have_the_score_and_log_density_of_pytorch",
    ),
    Mutant(
        "X: a fused logistic regression counts its padding",
        "fused/known.py",
        "log_p[i] = padding",
        "log_p[i] = zero",
        "test_fused.py::test_known_targets_have_the_score_and_log_density_of_pytorch",
    ),
    Mutant(
        "X: a fused MALA step keeps the score of what it rejected",
        "fused/engine.py",
        "_stay(take, g, there)",
        "_stay(take, g, g)",
        "test_fused.py::test_agrees_with_the_plain_engine",
    ),
    Mutant(
        "X: a Bessel ratio of the next order",
        "distributions/bessel.py",
        "order, z = dim / 2 - 1, _wide(k)",
        "order, z = dim / 2, _wide(k)",
        "test_bessel.py::test_against_sixty_digits",
    ),
    Mutant(
        "X: 1 − A as a difference",
        "distributions/bessel.py",
        "found = z * G, (half + above) * G, G,",
        "found = z * G, 1 - z * G, G,",
        "test_bessel.py::test_against_sixty_digits",
    ),
    Mutant(
        "X: the score on the sphere without its curvature",
        "distributions/directional.py",
        "(-at.E / at.T - at.R * ratio.complement)",
        "(-at.E / at.T)",
        "test_manifolds.py::test_near_the_sphere_at_small_noise",
    ),
    Mutant(
        "X: A/k instead of A' along the mean",
        "distributions/directional.py",
        "(ratio.A_over_k - ratio.slope).unsqueeze(-1)",
        "0 * ratio.slope.unsqueeze(-1)",
        "test_manifolds.py::test_derivatives_and_tweedie",
    ),
    Mutant(
        "X: σ for σ² off the subspace",
        "distributions/products.py",
        "self.law.score(y) @ U.mT - off / sigma / sigma",
        "self.law.score(y) @ U.mT - off / sigma",
        "test_manifolds.py::test_derivatives_and_tweedie",
    ),
    Mutant(
        "X: a basis taken for an orthonormal one",
        "distributions/manifolds.py",
        "S = R @ S @ R.mT",
        "S = S",
        "test_manifolds.py::test_subspace_is_the_singular_gaussian",
    ),
    Mutant(
        "X: σ for σ² in the dimension by the divergence",
        "manifold/dimension.py",
        "variance, D = b.reshape(-1).square()",
        "variance, D = b.reshape(-1)",
        "test_manifold_geometry.py::test_dimension_exact_forms",
    ),
    Mutant(
        "X: the rank is that of the tangents",
        "manifold/dimension.py",
        "(spectrum < rank_threshold(n - size, D))",
        "(spectrum > rank_threshold(n - size, D))",
        "test_manifold_geometry.py::test_dimension",
    ),
    Mutant(
        "X: tangents and normals change places",
        "manifold/tangent.py",
        "mask = index < self.dimension.unsqueeze(1)",
        "mask = index >= self.dimension.unsqueeze(1)",
        "test_manifold_geometry.py::test_split_on_the_circle",
    ),
    Mutant(
        "X: a projection by σ s",
        "manifold/projection.py",
        "step = b.square() * s",
        "step = b * s",
        "test_manifold_geometry.py::test_projection",
    ),
    Mutant(
        "X: the mean curvature without its 2",
        "manifold/curvature.py",
        "MeanCurvature(normal, 2 * normal)",
        "MeanCurvature(normal, normal)",
        "test_manifold_geometry.py::test_split_on_the_circle",
    ),
    Mutant(
        "X: the reverse SDE with η for η²",
        "transitions/reverse.py",
        "more = self.eta**2",
        "more = self.eta",
        "test_solvers.py::test_weak_order_of_the_law_on_a_gaussian",
    ),
    Mutant(
        "X: Euler–Maruyama with the drift of the flow",
        "transitions/reverse.py",
        "(1 + self.eta**2) / 2 * g2",
        "1 / 2 * g2",
        "test_solvers.py::test_euler_step_is_the_sde_written_out",
    ),
    Mutant(
        "X: DDIM's noise is not taken from its ε",
        "transitions/reverse.py",
        "sigma_s * (1 - part).sqrt() * eps",
        "sigma_s * eps",
        "test_solvers.py::test_ddim_is_the_formula_of_the_paper",
    ),
    Mutant(
        "X: 2M with the ratio of the steps upside down",
        "transitions/multistep.py",
        "share = h / (-2 * offsets[1])",
        "share = -offsets[1] / (2 * h)",
        "test_solvers.py::test_two_values_of_dpm_solver_are_2m",
    ),
    Mutant(
        "X: a multistep solver that never remembers",
        "sampling.py",
        "move = transition.begin() if isinstance(transition, Multistep) else transition",
        "move = transition",
        "test_solvers.py::test_order_on_a_mixture",
    ),
    Mutant(
        "X: the optimal variance without the square of its coefficient",
        "transitions/ancestral.py",
        "(alpha_s * var_ts / sigma_t**2) ** 2 * rest",
        "(alpha_s * var_ts / sigma_t**2) * rest",
        "test_solvers.py::test_optimal_variance_is_that_of_the_true_posterior",
    ),
    Mutant(
        "X: the Langevin corrector steps by q² and not 2q²",
        "transitions/corrector.py",
        "min(2 * self.snr**2, 1.0)",
        "min(self.snr**2, 1.0)",
        "test_solvers.py::test_corrector_by_level_is_langevin_with_step_two_q_squared_variance",
    ),
    Mutant(
        "X: churn adds the whole variance of the level above",
        "transitions/corrector.py",
        "math.sqrt(r_hat**2 - r**2)",
        "r_hat",
        "test_solvers.py::test_churn_raises_the_law_to_the_level_above",
    ),
    Mutant(
        "M: one error norm for the whole batch",
        "ode.py",
        "(local / scale).flatten(1).double().square().mean(1)",
        "(local / scale).double().square().mean().expand(n)",
        "test_ode.py::test_samples_take_steps_of_their_own",
    ),
    Mutant(
        "X: a score under another schedule is not rescaled",
        "rescheduled.py",
        "per_sample(ratio, x, \"alpha\") * self.score(y, time)",
        "self.score(y, time)",
        "test_rescheduled.py::test_score_and_denoiser_are_those_of_the_other_schedule",
    ),
    Mutant(
        "X: the variational bound without its ½",
        "bound.py",
        "0.5 * width * sum_event",
        "width * sum_event",
        "test_bound.py::test_bound_is_its_closed_form",
    ),
    Mutant(
        "X: bits without the width of a cell",
        "likelihood.py",
        "+ math.log2(levels)",
        "",
        "test_likelihood.py::test_bits_of_uniform_data_are_those_of_a_code",
    ),
    Mutant(
        "X: Cov v with σ for σ²",
        "tweedie.py",
        "v + b**2 * jacobian_product",
        "v + b * jacobian_product",
        "test_tweedie.py::test_product_is_that_of_the_matrix",
    ),
)  # fmt: skip
