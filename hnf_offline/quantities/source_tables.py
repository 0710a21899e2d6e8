"""Measures of three of the source documents, on profiling, dynamic modes and exploding gradients. Torch-free."""

from __future__ import annotations

#: Name in the document, what has it (entries and verbs, by commas), and a remark where there is one.
Line = tuple[str, str] | tuple[str, str, str]

SHAPING = "changes how a model is trained, and is no measure of a run that is over"

PROFILER: tuple[Line, ...] = (
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
    (
        "Pruning a layer on a warning",
        "",
        "another model from there on: its checkpoints are no retraining of this run",
    ),
    (
        "NaN cascades",
        "weight.nonfinite, hnf report",
        "the first layer that gives out NaN or infinity is named",
    ),
    (
        "Silent precision loss",
        "precision.loss_change_bf16, precision.output_error_bf16, hnf report",
    ),
    (
        "Comparison of architectures by it",
        "hnf diff",
        "two runs of one task; levels of other tasks do not compare",
    ),
    (
        "Products held against the full Hessian of small networks",
        "hnf profile --accuracy",
        "every eigenvalue stands with its residual; certified asks for exact products and a fresh start",
    ),
    ("Profiling of some steps, of some layers", "hnf profile --every, hnf profile --layers"),
    ("Integration with W&B, TensorBoard, MLflow", "hnf export"),
    ("Overhead", "hnf profile --plan"),
)

RKSP: tuple[Line, ...] = (
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
    ("Cost of the profiling itself", "hnf profile --plan"),
    (
        "Other architectures: mixtures of experts, state-space models, Kolmogorov-Arnold networks",
        "koopman.near_unit_mass, map.left_out",
        "of every block whose output is shaped as its input; the published levels do not carry over",
    ),
    ("Divergence rate with and without shaping", "hnf whatif", "with twins, so that chance is seen"),
    ("Larger stable learning rates", "hnf whatif --find, optimizer.largest_stable_lr"),
)

EXPLOSION: tuple[Line, ...] = (
    ("Gradient norm: healthy .5-5, high 5-10, critical > 10, exploded", "gradient.norm_band"),
    ("Infinite gradient, NaN loss", "hnf spikes, hnf report"),
    (
        "Recovery: skip the batch, cut the loss scale tenfold",
        "hnf whatif --policy skip, hnf whatif --policy rollback-skip",
        "torch's scaler skips such a batch by itself and halves the scale; a tenfold cut saves up to three skips",
    ),
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
    (
        "Training that hangs",
        "hnf spikes",
        "steps that are not in the log, and a fall of the throughput that it has",
    ),
    (
        "Learning rate within 1e-5 to 1e-4",
        "optimizer.learning_rate, optimizer.largest_stable_lr, hnf whatif --find",
        "no range suits all models: the largest stable rate of the checkpoint stands for it",
    ),
    (
        "Samples that vary",
        "gradient.variance_trace",
        "replayed sequences that are one and the same have no noise between them; a loader is not in a run's files",
    ),
    ("Initialization of the model", "hnf check"),
    (
        "Loss after the first epoch",
        "loss.mean, hnf spikes",
        "the numbers there are of its own vocabulary and data",
    ),
    (
        "Shorter sequences, smaller batches, a smaller model",
        "hnf diff",
        "another run, to be compared with this one",
    ),
    ("Validation accuracy", "loss.accuracy_drop, hnf spikes", "its best, and whether it has turned"),
    ("GPU utilization", "", "trackers sample it apart from the log of steps; it is not read"),
    ("Plasticity and state-space features switched off one by one", "", SHAPING),
)
