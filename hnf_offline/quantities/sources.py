"""What the four source documents list, measure by measure, and where each is here. Torch-free.

The documents are named by what they are about; numbers are those of the project's own list.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Short name -> title of a source document.
DOCUMENTS = {
    "profiler": "Condition number profiler for transformer training",
    "rksp": "Predicting transformer training instability (residual Koopman spectral profiling)",
    "explosion": "Training stability fixes: gradient explosion prevention",
    "catalogue": "Training stability and monitoring: analysis and techniques",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure, check or technique of a source document.

    Attributes:
        document: key of `DOCUMENTS`.
        name: as the document calls it.
        quantities: entries of the catalogue.
        elsewhere: verbs of the program that have it.
        remark: what differs, or why it is nowhere.
    """

    document: str
    name: str
    quantities: tuple[str, ...] = ()
    elsewhere: tuple[str, ...] = ()
    remark: str = ""


def _of(document: str, *measures: tuple[str, str] | tuple[str, str, str]) -> tuple[Measure, ...]:
    """Read lines of name, what has it, and a remark; what has it are names of entries and of verbs, by commas."""
    read: list[Measure] = []
    for line in measures:
        found = [one.strip() for one in line[1].split(",") if one.strip()]
        read.append(
            Measure(
                document,
                line[0],
                tuple(one for one in found if not one.startswith("hnf ")),
                tuple(one for one in found if one.startswith("hnf ")),
                line[2] if len(line) > 2 else "",
            )
        )
    return tuple(read)


_SEARCH = "a search over many trainings: later, by a verb for many runs"
_SHAPING = "changes how a model is trained, and is no measure of a run that is over"

_PROFILER = _of(
    "profiler",
    (
        "Curvature of a layer, ||D^2 f|| of module(x).sum() in its parameters",
        "hessian.lambda_max, map.d2_norm",
        "0 by its formula for Linear, LayerNorm and softmax: the loss's Hessian block and the layer's map "
        "stand for it",
    ),
    (
        "Hessian-vector products (Pearlmutter)",
        "hessian.lambda_max, hessian.lambda_min, hessian.stability_ratio",
    ),
    (
        "Spectral norm by power iteration",
        "hessian.lambda_max, hessian.lambda_min",
        "Lanczos with a residual: ten power steps do not converge, and the sign matters",
    ),
    (
        "Condition number of a layer's Jacobian",
        "map.condition, map.sigma_max, map.log_singular_spread",
        "ten random projections say nothing of the smallest singular value: singular values, structural zeros "
        "left out",
    ),
    ("HNF curvature", "map.hnf_curvature", "kappa = 1/2 ||D^2 f||"),
    ("||D^2 f|| times condition squared", "map.newton_curvature", "kappa ||J^+||^2, on the range of J"),
    ("Softmax: e^(2 max QK')", "proxy.softmax_log10, attention.logit_max", "a bound, not a curvature"),
    ("LayerNorm: 1 / sigma^2", "proxy.norm_log10, norm.inverse_sigma"),
    ("Cross-entropy: 1 / p_min", "proxy.cross_entropy_log10, logits.p_min"),
    (
        "Embedding lookup",
        "weight.condition, hessian.lambda_max",
        "a lookup is linear: it has no curvature as a map",
    ),
    ("FFN (GELU)", "map.d2_norm, activation.variance"),
    (
        "Curvature beyond float16's precision",
        "map.precision_bits, precision.nonfinite_fp16, precision.loss_change_fp16",
    ),
    (
        "Attention collapse: one head's curvature",
        "attention.entropy, attention.entropy_head, attention.saturation",
    ),
    ("Gradient explosion across layers", "gradient.depth_factor, gradient.flow_ratio, hnf report"),
    (
        "Warnings above 1e6 and 1e9",
        "proxy.softmax_log10, hnf monitor",
        "told as info: healthy runs pass these bands",
    ),
    ("Rapid increase, tenfold in ten steps", "hnf monitor"),
    (
        "Exponential extrapolation to failure",
        "hnf monitor, hnf report",
        "with an interval, and only where the fit holds",
    ),
    (
        "Risk level",
        "",
        "one number would hide which threshold was passed; S = 1 is the one with a theory behind it",
    ),
    (
        "Total curvature over layers",
        "hessian.trace",
        "a sum over layers is decided by the largest: traces add, norms do not",
    ),
    ("Loss spikes", "hnf spikes"),
    (
        "Correlation of curvature and loss, lead times",
        "hnf report",
        "against chance at the same number of alarms",
    ),
    ("Precision, recall, lead time of warnings", "hnf report"),
    ("Curvature against gradient norms as predictor", "hnf report"),
    (
        "Intervention: lower learning rate on a warning",
        "hnf whatif --policy lr-scale, hnf whatif --policy lr-ratchet",
    ),
    ("Heat map, time series", "hnf report"),
    ("Curvature-aware learning rate", "hnf whatif --policy lr-controller"),
    ("Learning rate of each layer by its curvature", "hnf whatif --policy lr-layers"),
    ("Curvature regularization", "hnf whatif --policy curvature-penalty"),
    ("Overhead", "hnf profile --plan"),
)

_RKSP = _of(
    "rksp",
    (
        "Near-unit spectral mass of whitened dynamic mode decompositions of the residual stream",
        "koopman.near_unit_mass, koopman.growing_mass, koopman.damped_mass, koopman.middle_mass, koopman.modes, "
        "hnf profile --koopman",
        "whitening is a similarity and changes no eigenvalue",
    ),
    (
        "Reliability of the modes: residuals, nonlinearity",
        "koopman.resolved_share, koopman.nonlinearity",
    ),
    (
        "Spectral radius, non-normality, transient growth",
        "koopman.spectral_radius, koopman.eigenvector_condition, koopman.kreiss",
    ),
    (
        "Probability of divergence from one forward pass at initialization",
        "",
        "the published AUROC of 0.995 is that of the label 'no normalization' (0.989 by itself)",
    ),
    ("Koopman spectral shaping", "hnf whatif --policy koopman-shaping"),
    ("Divergence rate with and without shaping", "hnf whatif", "with twins, so that chance is seen"),
    ("Larger stable learning rates", "hnf whatif --find, optimizer.largest_stable_lr"),
)

_EXPLOSION = _of(
    "explosion",
    ("Gradient norm: healthy .5-5, high 5-10, critical > 10, exploded", "gradient.norm_band"),
    ("Infinite gradient, NaN loss", "hnf spikes, hnf report"),
    ("Weights that are NaN or infinite", "weight.nonfinite, hnf check"),
    ("Loss scale: initial value, growth, interval", "scaler.simulated_skips, hnf spikes --scaler"),
    ("Loss scale settings in a retraining", "hnf whatif --policy scaler"),
    ("History of the loss scale, skipped batches", "scaler.skipped_share, hnf spikes"),
    ("Trend of gradient norms, frequency of warnings", "gradient.norm_band, gradient.norm, hnf spikes"),
    ("Loss decreases steadily", "loss.power_law, loss.plateau_score, hnf spikes"),
    (
        "Mixed precision: underflow and overflow",
        "activation.underflow_fp16, activation.overflow_fp16, precision.nonfinite_fp16",
    ),
    ("Gradient clipping", "hnf whatif --policy clip"),
    ("Lower learning rate", "hnf whatif --policy lr-scale"),
    ("Results printed several times", "hnf spikes, hnf check"),
    ("Slow training, time per epoch", "hnf spikes"),
    ("Validation accuracy", "loss.accuracy_drop, hnf spikes", "its best, and whether it has turned"),
    ("GPU utilization", "", "trackers sample it apart from the log of steps; it is not read"),
    ("Plasticity and state-space features switched off one by one", "", _SHAPING),
)

_CATALOGUE = _of(
    "catalogue",
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
        "landscape.local_sharpness, update.measured_change, hnf profile --landscape",
        "one step uphill, as in sharpness-aware minimisation; the next update's own rise is update.measured_change",
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
        "holds below the critical batch size",
    ),
    ("Generalization gap of large batches", "loss.validation_gap"),
    ("Noise against batch size", "gradient.variance_trace"),
    (
        "Critical batch size",
        "gradient.critical_batch",
        "tr(H) / |g|^2 there is no batch size: B ~ tr(Sigma) / |G|^2",
    ),
    ("Loss by step, epoch and phase", "loss.mean, loss.deviation, hnf spikes"),
    ("Loss components", "", "further losses in a log are columns like any other; they are not added up"),
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
    ("Search spaces, Bayesian optimization, multi-objective optimization", "", _SEARCH),
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
    ("Dead features", "activation.dead_share"),
    (
        "Xavier, He, variance-preserving initialization, LSUV",
        "weight.deviation, activation.variance, residual.growth, hnf check, hnf report",
        "of an initial checkpoint: the scheme of each matrix, layers that are off, growth over the blocks, first loss; "
        "LSUV itself is a way to initialise",
    ),
    ("Batch normalization", "", _SHAPING),
    (
        "Lipschitz regularization, spectral normalization",
        "weight.sigma_max, map.sigma_max, hnf whatif --policy spectral-cap",
    ),
    ("Curriculum, progressive, self-paced learning", "", _SHAPING),
)

MEASURES: tuple[Measure, ...] = _PROFILER + _RKSP + _EXPLOSION + _CATALOGUE


def measures_of(document: str) -> tuple[Measure, ...]:
    """Give what one source document lists.

    Returns:
        Its measures, in the document's order.
    """
    return tuple(measure for measure in MEASURES if measure.document == document)
