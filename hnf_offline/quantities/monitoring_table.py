"""Measures of the source document on training stability and monitoring. Torch-free."""

from __future__ import annotations

from hnf_offline.quantities.source_tables import SHAPING, Line

_SEARCH = "a search over many trainings: later, by a verb for many runs"

CATALOGUE: tuple[Line, ...] = (
    (
        "Fixed points and their stability",
        "hessian.stability_ratio, hessian.lambda_min",
        "eigenvalues of a Hessian are real",
    ),
    (
        "Temperature of the continuous-time limit",
        "gradient.variance_trace",
        "tr(Sigma) is what the temperature stands for",
    ),
    (
        "Morse index",
        "hessian.negative_share",
        "the share, by Lanczos quadrature: the number is not known of large models",
    ),
    ("Saddle point escape", "", "a bound with an unknown constant"),
    (
        "Mode connectivity",
        "landscape.linear_barrier, hnf profile --landscape, hnf diff --barrier",
        "along the straight line, between checkpoints and between runs; no path is learned",
    ),
    ("Gradient norm", "gradient.norm"),
    ("Exponential average and gradient norm ratio", "gradient.ema_ratio, adam.lag_rms"),
    ("Effective learning rate", "gradient.effective_lr"),
    (
        "Gradient noise scale",
        "gradient.noise_scale, gradient.variance_trace",
        "inverted there: it is tr(Sigma) / |G|^2",
    ),
    (
        "Critical learning rate 2 / lambda_max",
        "update.critical_lr, optimizer.largest_stable_lr",
        "that is plain gradient descent's",
    ),
    ("Edge of stability", "hessian.stability_ratio"),
    (
        "Lyapunov exponent",
        "lyapunov.local_rate, hnf whatif",
        "of one step, by the optimizer's linearised update; twins of hnf whatif part at the rate of many",
    ),
    (
        "Local sharpness",
        "landscape.local_sharpness, landscape.epsilon_sharpness, update.measured_change, hnf profile --landscape",
        "one step uphill, as in sharpness-aware minimisation; the highest of some corners of a box, as Keskar et al. "
        "have it; both lower bounds of the maximum; the next update's own rise is update.measured_change",
    ),
    (
        "PAC-Bayesian sharpness",
        "landscape.pac_bayes, hessian.trace",
        "the noise at a given rise (Jiang et al. 2020); the square root of a trace over 2n is no bound by itself",
    ),
    ("Spectral sharpness", "hessian.lambda_max"),
    (
        "Linear scaling of learning rate and batch",
        "gradient.critical_batch",
        "holds below the critical batch size; with Adam the square root of the ratio is usual",
    ),
    ("Generalization gap of large batches", "loss.validation_gap"),
    ("Noise against batch size", "gradient.variance_trace"),
    (
        "Critical batch size",
        "gradient.critical_batch",
        "tr(H) / |g|^2 there is no batch size: B ~ tr(Sigma) / |G|^2",
    ),
    ("Loss by step, epoch and phase", "loss.mean, loss.deviation, hnf spikes"),
    (
        "Loss components",
        "loss.component_share, loss.mean, loss.deviation, loss.explosion_score, hnf spikes",
        "of every further loss in the log, as it was logged: weights are not known",
    ),
    (
        "Moving statistics: mean, variance, skewness, kurtosis",
        "loss.mean, loss.deviation, loss.skewness, loss.excess_kurtosis",
    ),
    ("CUSUM", "hnf report, hnf monitor"),
    ("Layer-wise gradient norms", "gradient.norm"),
    ("Vanishing and exploding gradients", "gradient.depth_factor, hnf report"),
    ("Gradient flow ratio", "gradient.flow_ratio", "between layers of one kind"),
    (
        "Cosine similarity between steps",
        "gradient.momentum_cosine, gradient.moment_cosine",
        "against averages of the steps before",
    ),
    (
        "Gradient predictiveness R^2",
        "gradient.predictiveness, gradient.predictiveness_curved, update.first_order_change, "
        "update.predicted_change, update.measured_change, update.logged_change",
        "of one update at each checkpoint, over a trailing window; a constant error counts",
    ),
    (
        "Principal components of gradients, effective dimension",
        "gradient.effective_dimension, gradient.first_component_share, gradient.three_component_share",
        "of unit gradients of a window of checkpoints",
    ),
    ("Weight mean, standard deviation", "weight.mean, weight.deviation, weight.excess_kurtosis"),
    (
        "Histogram of weights",
        "weight.quantile_01, weight.quantile_25, weight.quantile_50, weight.quantile_75, weight.quantile_99, "
        "weight.largest",
    ),
    (
        "Update magnitude, relative change",
        "weight.update_norm, weight.update_ratio, gradient.next_update_ratio",
    ),
    ("Update direction consistency", "weight.update_cosine"),
    ("Singular values", "weight.sigma_max, weight.sigma_median, weight.sigma_min, weight.tail_exponent"),
    ("Condition number of weights", "weight.condition"),
    ("Stable rank", "weight.stable_rank, weight.effective_rank"),
    ("Nuclear norm", "weight.nuclear_norm"),
    ("Activation mean, variance", "activation.mean, activation.variance"),
    ("Dead neurons, dead ReLU", "activation.dead_share, activation.zero_share"),
    (
        "Histogram of activations",
        "activation.smallest, activation.largest, activation.variance",
        "its ends and its width, no bins",
    ),
    ("Saturation", "activation.saturated_share, attention.saturation"),
    ("ReLU statistics", "activation.positive_share"),
    (
        "Mutual information between layers",
        "similarity.information, similarity.cka",
        "of one direction each, a lower bound",
    ),
    (
        "Information bottleneck: I(X; A), I(A; Y)",
        "replay.loss",
        "of a deterministic network I(X; A) is infinite or that of the bins (Saxe et al. 2018); log of the "
        "classes minus the "
        "loss is the lower bound of I(A; Y) that can be trusted",
    ),
    ("Training-validation gap, overfitting onset", "loss.validation_gap, hnf spikes"),
    ("Drops after schedule changes", "loss.schedule_effect"),
    ("Plateau score", "loss.plateau_score"),
    ("Time to convergence, sample efficiency", "loss.steps_to_target, hnf spikes --target"),
    ("Compute efficiency", "", "operations are not counted from a run's files; tokens to a target are told"),
    (
        "Search spaces: scales, ranges that depend on the optimizer, constraints such as beta1 < beta2",
        "",
        _SEARCH,
    ),
    ("Bayesian optimization, multi-objective optimization", "", _SEARCH),
    ("Population-based training", "", _SEARCH),
    ("Successive halving, Hyperband", "", _SEARCH),
    (
        "Early stopping with patience",
        "loss.validation_gap, hnf spikes",
        "the onset of overfitting is told; patience is a setting of training",
    ),
    ("Paired t-test", "loss.paired_t, hnf diff", "with the rows that autocorrelation leaves"),
    ("Learning curve extrapolation", "loss.power_law, loss.expected_gain"),
    ("Gradient checking", "gradient.check_error, hnf profile --gradient-check"),
    ("Gradient flow over depth", "gradient.depth_factor"),
    ("Condition number monitoring", "weight.condition, map.condition"),
    (
        "Activation range: saturation, explosion, underflow",
        "activation.smallest, activation.largest, activation.underflow_fp16, activation.underflow_bf16, "
        "activation.overflow_fp16, activation.overflow_bf16, residual.growth, residual.rms",
    ),
    ("Loss explosion score", "loss.explosion_score", "trailing noise for the sigma of all history"),
    (
        "Memory of weights, gradients, optimizer state and activations",
        "",
        "what training took is not in a run's files, but as a column of the log; hnf profile --plan tells what the "
        "measuring takes",
    ),
    (
        "Memory use, memory leaks",
        "hnf spikes, hnf report",
        "where the log has a column of it: a rise that outlasts the warm-up",
    ),
    ("Computational bottlenecks", "", "not in a run's files; the throughput that a log has is"),
    (
        "Receptive fields, feature maps",
        "",
        "of convolutions: their inputs are not among the batches that are read",
    ),
    (
        "Dead features, zero or constant",
        "activation.dead_share, koopman.modes",
        "units that are off at every token; directions that do not vary are no modes",
    ),
    (
        "Xavier, He, variance-preserving initialization, LSUV",
        "weight.deviation, activation.variance, residual.growth, hnf check, hnf report",
        "of an initial checkpoint: the scheme of each matrix, layers that are off, growth over the blocks, first loss; "
        "LSUV itself is a way to initialise",
    ),
    ("Batch normalization", "", SHAPING),
    (
        "Lipschitz regularization, spectral normalization",
        "weight.sigma_max, map.sigma_max, hnf whatif --policy spectral-cap",
    ),
    ("Curriculum, progressive, self-paced learning", "", SHAPING),
)
