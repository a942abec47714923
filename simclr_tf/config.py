"""What a run is: one frozen dataclass, checked when it is made.

Each field is one command-line flag (`options.py` makes the flags from this class) and carries its help, topic and
range. Names and defaults are the reference's (google-research/simclr, TF2 code) where it has the flag; the rest are
ours.
"""

from __future__ import annotations

import dataclasses

from simclr_tf.config_checks import PROBES, RESNET_DEPTHS, STUDY_ROWS, check_field, check_together, listed

ENDPOINTS = (
    "initial_conv", "initial_max_pool", "block_group1", "block_group2", "block_group3", "block_group4",
    "final_avg_pool", "proj_head_input", "proj_head_output", "logits_sup",
)
CIFAR_STEM_MAX_SIZE = 32  # images up to this size get the 3x3 stem without pooling, and no evaluation crop


def option(default, topic: str, help: str, *, choices=None, above=None, at_least=None, at_most=None, resumable=False):
    """A dataclass field that is also a flag.

    Args:
      default: the flag's default; its type, or the field's annotation where it is None, is the flag's type.
      topic: heading under which `--help` lists it.
      help: one or two sentences for `--help`.
      choices: for strings, the values allowed.
      above, at_least, at_most: range of a number, checked together with being finite.
      resumable: whether a run may be continued with another value of it.
    """
    metadata = dict(topic=topic, help=help, choices=choices, above=above, at_least=at_least, at_most=at_most)
    return dataclasses.field(default=default, metadata=metadata | {"resumable": resumable})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides what a run does. Immutable; use `dataclasses.replace` for a variant.

    Raises:
      ConfigError: a value is out of its range or two values contradict each other.
    """

    # --- Running -------------------------------------------------------------------------------------------------
    mode: str = option(
        "train", "Running", "What to do.", resumable=True,
        choices=("train", "eval", "train_then_eval", "probe", "embed", "predict", "export", "compare", "demo", "study",
                 "list_checkpoints", "doctor"),
    )
    train_mode: str = option(
        "pretrain", "Running", "Objective and trainable parts: contrastive pretraining, supervised fine-tuning, "
        "distillation: learning the class probabilities of a --teacher, or baseline: a classifier on the features of "
        "a frozen InceptionV3.",
        choices=("pretrain", "finetune", "distill", "baseline"),
    )
    model_dir: str | None = option(
        None, "Running", "Folder of the run: checkpoints, summaries, results. Created if absent.", resumable=True,
    )
    checkpoint: str | None = option(
        None, "Running", "Checkpoint to start from: a prefix, folder, archive or URL, or the name of a released "
        "model (--mode=list_checkpoints). A run that already has a checkpoint in model_dir continues from that "
        "instead.", resumable=True,
    )
    seed: int = option(
        0, "Running", "Seed of initial weights, example order and augmentation.", at_least=0, at_most=2**31 - 1,
    )
    dry_run: bool = option(
        False, "Running", "Print the resolved configuration, model size, which variables decay and adapt, and steps; "
        "then stop.", resumable=True,
    )
    json: bool = option(False, "Running", "In --mode=doctor, print JSON.", resumable=True)
    checkpoint_epochs: int = option(
        1, "Running", "Number of epochs between checkpoints.", at_least=1, resumable=True,
    )
    checkpoint_steps: int = option(
        0, "Running", "Number of steps between checkpoints; overrides checkpoint_epochs when above 0.", at_least=0,
        resumable=True,
    )
    keep_checkpoint_max: int = option(
        5, "Running", "How many of the newest checkpoints to keep, besides the best of those that were evaluated; 0 "
        "keeps all.", at_least=0, resumable=True,
    )
    allow_changed_settings: str | None = option(
        None, "Running", "Settings with which a run may be continued although they are not those that it was started "
        "with, separated by commas: learning_rate,temperature.", resumable=True,
    )
    keep_hub_module_max: int = option(
        1, "Running", "How many of the SavedModels written at evaluations to keep; 0 keeps all, -1 writes none.",
        at_least=-1, resumable=True,
    )
    wandb: bool = option(
        False, "Running", "Send numbers and pictures of the run to Weights & Biases as well; project and account as "
        "the WANDB_ environment variables say.", resumable=True,
    )
    nan_policy: str = option(
        "stop", "Running", "At a step whose loss or gradients are not finite: stop before its update, or skip it.",
        choices=("stop", "skip"), resumable=True,
    )
    train_summary_steps: int = option(
        100, "Running", "Steps between progress lines and training summaries; 0 writes them at checkpoints only.",
        at_least=0, resumable=True,
    )

    # --- Data ----------------------------------------------------------------------------------------------------
    dataset: str = option(
        "imagenet2012", "Data", "Name of a TFDS data set, folder:<path> for a tree of images, or digits for the "
        "embedded 8x8 digits.",
    )
    data_dir: str | None = option(None, "Data", "Directory where TFDS data sets are stored.", resumable=True)
    train_split: str = option("train", "Data", "Split for training; slices such as train[:10%] are allowed.")
    eval_split: str = option(
        "validation", "Data", "Split for evaluation; slices such as test[20%:] are allowed.", resumable=True,
    )
    labels_per_class: int = option(
        0, "Data", "Use the labels of this many examples of each class only, chosen by the seed; 0 uses all. "
        "Fine-tuning leaves out the other examples, distillation learns from them without their labels.", at_least=0,
    )
    label_fraction: float = option(
        1.0, "Data", "Use the labels of this fraction of the examples only, the same of each class (at least one), "
        "chosen by the seed; as for labels_per_class.", above=0.0, at_most=1.0,
    )
    held_out_fraction: float = option(
        0.0, "Data", "Keep this fraction of the labelled examples of each class out of fine-tuning, to choose settings "
        "on: --eval_split=held_out evaluates on them.", at_least=0.0, at_most=0.9,
    )
    max_bad_images: int = option(
        0, "Data", "How many unreadable images to skip, counting and naming them, before giving up.", at_least=0,
        resumable=True,
    )
    cache_dataset: bool = option(
        False, "Data", "Keep the encoded images in memory.", resumable=True,
    )

    # --- Augmentation --------------------------------------------------------------------------------------------
    image_size: int = option(224, "Augmentation", "Height and width of the network's input, in pixels.", at_least=8)
    color_jitter_strength: float = option(
        1.0, "Augmentation", "Strength of colour distortion while pretraining; 0 switches it off.", at_least=0.0,
        at_most=1.25,
    )
    color_jitter_impl: str = option(
        "simclrv2", "Augmentation", "Brightness jitter: multiplicative as in SimCLRv2 or additive as in SimCLRv1.",
        choices=("simclrv1", "simclrv2"),
    )
    use_blur: bool = option(True, "Augmentation", "Gaussian blur of half of the views while pretraining.")

    # --- Model ---------------------------------------------------------------------------------------------------
    resnet_depth: int = option(50, "Model", "Depth of the ResNet: " + ", ".join(map(str, RESNET_DEPTHS)) + ".")
    width_multiplier: float = option(
        1, "Model", "Multiplier of the ResNet's width; fractions such as 0.25 are allowed.", above=0.0,
    )
    sk_ratio: float = option(
        0.0, "Model", "Above 0: selective kernels and the ResNet-D stem. Recommendation: 0.0625.", at_least=0.0,
        at_most=1.0,
    )
    se_ratio: float = option(0.0, "Model", "Above 0: squeeze-and-excitation.", at_least=0.0, at_most=1.0)
    proj_head_mode: str = option(
        "nonlinear", "Model", "How the projection head is made.", choices=("none", "linear", "nonlinear"),
    )
    proj_out_dim: int = option(128, "Model", "Dimensions of the projection z.", at_least=1)
    num_proj_layers: int = option(3, "Model", "Layers of the non-linear projection head.", at_least=1)
    batch_norm_decay: float = option(
        0.9, "Model", "Decay of batch norm's moving statistics.", at_least=0.0, at_most=1.0,
    )
    global_bn: bool = option(True, "Model", "Batch-norm statistics over all replicas instead of each its own.")
    fused_bn: bool = option(
        False, "Model", "Batch norm as one fused kernel in float32 too, where one replica trains: faster, but rounded "
        "otherwise than the reference. In bfloat16 and float16 it always is.",
    )
    precision: str = option(
        "float32", "Model", "Arithmetic of the network; losses, norms and statistics stay in float32.",
        choices=("float32", "mixed_bfloat16", "mixed_float16"),
    )

    # --- Objective -----------------------------------------------------------------------------------------------
    temperature: float = option(0.1, "Objective", "Temperature of NT-Xent.", above=0.0)
    hidden_norm: bool = option(True, "Objective", "Normalise z to unit length before the contrastive loss.")
    lineareval_while_pretraining: bool = option(
        True, "Objective", "Train a linear classifier behind a stop-gradient while pretraining, if there are labels.",
    )

    # --- Optimisation --------------------------------------------------------------------------------------------
    optimizer: str = option("lars", "Optimisation", "Optimizer.", choices=("momentum", "adam", "lars"))
    learning_rate: float = option(
        0.3, "Optimisation", "Learning rate per batch size of 256 (linear scaling) or per square root of the batch "
        "size (sqrt).", at_least=0.0,
    )
    learning_rate_scaling: str = option(
        "linear", "Optimisation", "How the learning rate grows with the batch size.", choices=("linear", "sqrt"),
    )
    warmup_epochs: float = option(10.0, "Optimisation", "Epochs of linear warm-up.", at_least=0.0)
    momentum: float = option(0.9, "Optimisation", "Momentum of LARS and of SGD.", at_least=0.0, at_most=1.0)
    weight_decay: float = option(1e-6, "Optimisation", "Weight decay.", at_least=0.0)
    train_batch_size: int = option(512, "Optimisation", "Images per training step over all replicas.", at_least=1)
    micro_batch_size: int = option(
        0, "Optimisation", "Images that pretraining encodes at a time, over all replicas: saves memory, costs time. "
        "The loss is the whole batch's, batch norm's statistics are a piece's (docs/performance.md). 0: all at once.",
        at_least=0,
    )
    train_epochs: int = option(100, "Optimisation", "Epochs to train.", at_least=0, resumable=True)
    train_steps: int = option(
        0, "Optimisation", "Steps to train; overrides train_epochs when above 0.", at_least=0, resumable=True,
    )

    # --- Fine-tuning ---------------------------------------------------------------------------------------------
    fine_tune_after_block: int = option(
        -1, "Fine-tuning", "Train only what lies after this block: -1 everything, 0 all after the stem, 4 the linear "
        "head alone.", at_least=-1, at_most=4,
    )
    ft_proj_selector: int = option(
        0, "Fine-tuning", "Layer of the projection head that feeds the supervised head: 0 the encoder's output, -1 "
        "the head's last layer.", at_least=-1,
    )
    zero_init_logits_layer: bool = option(
        False, "Fine-tuning", "Start the supervised head at zero when fine-tuning from a checkpoint.",
    )
    variable_schema: str = option(
        "?!global_step", "Fine-tuning", "Regular expression on TF1 variable names: what to restore from "
        "--checkpoint. The default means everything but global_step.", resumable=True,
    )

    use_ema: bool = option(
        False, "Fine-tuning", "Restore the moving average of the weights from --checkpoint, where it holds one.",
        resumable=True,
    )

    # --- Distillation --------------------------------------------------------------------------------------------
    teacher: str | None = option(
        None, "Distillation", "In --train_mode=distill, the checkpoint to learn from: a prefix, a directory, or a "
        "released model. It must have a supervised head.",
    )
    distill_temperature: float = option(
        1.0, "Distillation", "Temperature of the teacher's and the student's class probabilities.", above=0.0,
    )
    distill_weight: float = option(
        1.0, "Distillation", "Weight of the teacher's probabilities in the loss; the rest, if any, is that of the "
        "labels, of all examples or of those that --labels_per_class or --label_fraction choose.", at_least=0.0,
        at_most=1.0,
    )

    # --- Baseline ------------------------------------------------------------------------------------------------
    baseline_weights: str = option(
        "imagenet", "Baseline", "In --train_mode=baseline, weights of the frozen InceptionV3: imagenet (Keras's file, "
        "downloaded at first use), none (random), or the path of a weights file.",
    )
    baseline_image_size: int = option(
        299, "Baseline", "Height and width that images are resized to for InceptionV3.", at_least=75,
    )

    # --- Study ---------------------------------------------------------------------------------------------------
    study_rows: str = option(
        ",".join(STUDY_ROWS), "Study", "Rows of the table, in the order they are run.", resumable=True,
    )
    study_seeds: str | None = option(
        None, "Study", "Seeds of the rows that are trained on labels, such as 0,1,2; default --seed alone.",
        resumable=True,
    )
    study_pretrain_seeds: str | None = option(
        None, "Study", "Seeds that pretraining and the baselines are repeated for; the other seeds' fine-tunings start "
        "from the first one's pretraining. Default: the first seed.", resumable=True,
    )
    study_labelled_split: str = option(
        "test[:20%]", "Study", "Split whose labels are learned from. Pretraining uses --train_split without labels; "
        "the test images are --eval_split, test[20%:] if not given.", resumable=True,
    )
    study_steps: int = option(
        780, "Study", "Updates of fine-tuning and of the linear head.", at_least=1, resumable=True,
    )
    study_scratch_steps: int = option(
        0, "Study", "Updates of supervised training from scratch; 0: as many as fine-tuning.", at_least=0,
        resumable=True,
    )
    study_batch_size: int = option(
        64, "Study", "Images per update of the rows that are trained on labels.", at_least=1, resumable=True,
    )
    study_optimizer: str = option(
        "lars", "Study", "Optimizer of fine-tuning and of training from scratch.",
        choices=("momentum", "adam", "lars"), resumable=True,
    )
    study_learning_rates: str = option(
        "0.2,0.8,3.2", "Study", "Learning rates of training from scratch, per 256 images: the one that does best on "
        "the test images counts, in its favour.", resumable=True,
    )
    study_finetune_learning_rates: str | None = option(
        None, "Study", "Learning rates of fine-tuning; of several the best on held-out labelled images is used. "
        "Default: those of training from scratch.", resumable=True,
    )
    study_linear_learning_rates: str = option(
        "0.1,0.3,1", "Study", "Learning rates of the linear head (with momentum), chosen as those of fine-tuning.",
        resumable=True,
    )
    study_weight_decay: float = option(
        0.0, "Study", "Weight decay of the rows that are trained on labels.", at_least=0.0, resumable=True,
    )
    study_label_counts: str | None = option(
        "1,2,5", "Study", "Labels per class at which the label-efficiency curve is measured, besides all; none "
        "leaves the curve out.", resumable=True,
    )
    study_label_seeds: str | None = option(
        None, "Study", "Seeds that the label-efficiency curve is measured with; default --study_seeds.", resumable=True,
    )
    study_label_steps: int = option(
        0, "Study", "Updates at each point of the label-efficiency curve but the last; 0: as many as at all labels.",
        at_least=0, resumable=True,
    )
    study_checkpoint: str = option(
        "simclrv2/pretrained/r50_1x_sk0", "Study", "Released (or any other) checkpoint that is fine-tuned in the row "
        "`released`.", resumable=True,
    )

    # --- Evaluation ----------------------------------------------------------------------------------------------
    eval_batch_size: int = option(256, "Evaluation", "Images per evaluation step.", at_least=1, resumable=True)
    eval_steps: int = option(
        0, "Evaluation", "Evaluation steps; 0 evaluates the whole split.", at_least=0, resumable=True,
    )
    eval_name: str | None = option(
        None, "Evaluation", "Name added to the evaluation's result files and summaries.", resumable=True,
    )
    eval_every_epochs: int = option(
        0, "Evaluation", "While training, evaluate every so many epochs; 0 does not.", at_least=0, resumable=True,
    )
    predict_input: str | None = option(
        None, "Evaluation", "In --mode=predict, the image file or folder of images to classify.", resumable=True,
    )
    export_format: str = option(
        "saved_model", "Evaluation", "In --mode=export, what to write: a SavedModel as the reference's, a file of "
        "stock Keras layers, or weights for torch.", choices=("saved_model", "keras", "safetensors"), resumable=True,
    )
    eval_timeout: float = option(
        3600.0, "Evaluation", "In --mode=eval, seconds to wait for a new checkpoint before ending.", at_least=0.0,
        resumable=True,
    )

    report_images: int = option(
        512, "Evaluation", "How many images the report's look at the representation takes: neighbours, map, health; 0 "
        "leaves it out.", at_least=0, resumable=True,
    )
    runs: str | None = option(
        None, "Evaluation", "In --mode=compare, the folders of the runs, separated by commas.", resumable=True,
    )

    # --- Probes and embeddings -----------------------------------------------------------------------------------
    endpoint: str = option(
        "final_avg_pool", "Probes and embeddings", "Which output of the network to probe or to write.",
        choices=ENDPOINTS, resumable=True,
    )
    probe: str = option(
        ",".join(PROBES), "Probes and embeddings", "In --mode=probe, what to train on the frozen features: a linear "
        "classifier by SGD, a converged logistic regression, weighted nearest neighbours; one or several.",
        resumable=True,
    )
    probe_split: str | None = option(
        None, "Probes and embeddings", "Split whose labels the probes learn from. Default: --train_split.",
        resumable=True,
    )
    probe_labels: str | None = option(
        None, "Probes and embeddings", "Repeat the probes with fewer labels, such as 1%,10%,100% of each class, or "
        "1,5,25 of each class.", resumable=True,
    )
    probe_standardise: bool = option(
        True, "Probes and embeddings", "Linear and logistic regression: features of mean 0 and deviation 1 over the "
        "training images.", resumable=True,
    )
    probe_views: int = option(
        0, "Probes and embeddings", "Linear: how many augmented views (crop, flip) of each training image to train on "
        "in turn; 0 takes the evaluation crop.", at_least=0, resumable=True,
    )
    probe_epochs: int = option(90, "Probes and embeddings", "Linear: epochs.", at_least=1, resumable=True)
    probe_batch_size: int = option(
        256, "Probes and embeddings", "Linear: examples per update.", at_least=1, resumable=True,
    )
    probe_learning_rates: str = option(
        "0.01,0.1,1", "Probes and embeddings", "Linear: learning rates per batch size of 256; of several the best on "
        "held-out training examples is used.", resumable=True,
    )
    probe_weight_decay: float = option(
        0.0, "Probes and embeddings", "Linear: weight decay.", at_least=0.0, resumable=True,
    )
    probe_l2: str | None = option(
        None, "Probes and embeddings", "Logistic regression: weights of the squared norm, beside the sum of losses "
        "over examples; of several the best on held-out training examples is used. Default: 45 from 1e-6 to 1e5, as in "
        "the papers.", resumable=True,
    )
    knn_k: str = option(
        "200,100,50,20,10,5,1", "Probes and embeddings", "Nearest neighbours: how many vote; the first gives "
        "probe/knn/top_1.", resumable=True,
    )
    knn_temperature: float = option(
        0.07, "Probes and embeddings", "Nearest neighbours: a vote weighs exp(cosine similarity / this).", above=0.0,
        resumable=True,
    )
    knn_every_epochs: int = option(
        0, "Probes and embeddings", "While training, classify --eval_split by the neighbours in --probe_split every so "
        "many epochs; 0 does not. Training sees none of these labels.", at_least=0, resumable=True,
    )
    embed_parquet: bool = option(
        False, "Probes and embeddings", "In --mode=embed, also write embeddings.parquet.", resumable=True,
    )
    embed_neighbours: int = option(
        10, "Probes and embeddings", "In --mode=embed, how many nearest neighbours to list; 0 lists none.", at_least=0,
        resumable=True,
    )
    embed_queries: int = option(
        1000, "Probes and embeddings", "In --mode=embed, of how many images, the first ones of the split.", at_least=1,
        resumable=True,
    )
    projector_images: int = option(
        2000, "Probes and embeddings", "In --mode=embed, how many images TensorBoard's projector shows; 0 writes no "
        "folder for it.", at_least=0, at_most=10_000, resumable=True,
    )

    # --- Devices -------------------------------------------------------------------------------------------------
    strategy: str = option(
        "auto", "Devices", "How to use the devices; auto takes a TPU, else all GPUs, else the CPU.",
        choices=("auto", "cpu", "gpu", "mirrored", "multi_worker", "tpu"), resumable=True,
    )
    deterministic: bool | None = option(
        None, "Devices", "Only kernels that give the same numbers each time. On a CPU runs repeat bit for bit without "
        "it; on a GPU it costs speed (docs/reliability.md).", resumable=True,
    )
    use_tpu: bool | None = option(
        None, "Devices", "Whether to run on TPU; by default if there is one.", resumable=True,
    )
    tpu_name: str | None = option(
        None, "Devices", "Name or grpc:// address of the Cloud TPU.", resumable=True,
    )
    tpu_zone: str | None = option(None, "Devices", "Zone of the Cloud TPU.", resumable=True)
    gcp_project: str | None = option(None, "Devices", "Project of the Cloud TPU.", resumable=True)
    master: str | None = option(None, "Devices", "Address of the TensorFlow master.", resumable=True)
    steps_per_loop: int = option(
        0, "Devices", "Steps run on the device between two looks at the host; 0 chooses.", at_least=0, resumable=True,
    )

    jit_compile: bool = option(
        False, "Devices", "Whether XLA compiles the training step; for one GPU. On a TPU it always does, on a CPU it "
        "is slower.", resumable=True,
    )

    # Names of the fields that were chosen rather than left at their default: an architecture that was chosen must
    # agree with a checkpoint's, one that was not follows it.
    given: frozenset[str] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.given is None:
            chosen = frozenset(f.name for f in flag_fields() if getattr(self, f.name) != f.default)
            object.__setattr__(self, "given", chosen)
        for field in flag_fields():
            check_field(field, getattr(self, field.name))
        check_together(self)

    @classmethod
    def from_flags(cls, argv: list[str]) -> Config:
        """The config of a command line, program name left out: `Config.from_flags(["--image_size=32"])`."""
        from simclr_tf import options  # the one way back from here to the flags, and only when asked

        return options.parse(argv)

    @property
    def allowed_changes(self) -> frozenset[str]:
        """The names in `allow_changed_settings`."""
        return frozenset(listed(self, "allow_changed_settings", str))

    # --- Arithmetic of steps, as in the reference ------------------------------------------------------------------
    @property
    def cifar_stem(self) -> bool:
        return self.image_size <= CIFAR_STEM_MAX_SIZE

    @property
    def linear_eval(self) -> bool:
        """Whether a supervised head exists (it still needs labels to be trained)."""
        return self.train_mode != "pretrain" or self.lineareval_while_pretraining

    def total_steps(self, num_examples: int) -> int:
        """Steps of the whole training on `num_examples` images."""
        return self.train_steps or num_examples * self.train_epochs // self.train_batch_size + 1

    def warmup_steps(self, num_examples: int) -> int:
        return round(self.warmup_epochs * num_examples // self.train_batch_size)

    def epoch_steps(self, num_examples: int) -> int:
        """Steps per epoch; at least one, where the reference's 0 makes it loop forever."""
        return max(1, round(num_examples / self.train_batch_size))

    def checkpoint_interval(self, num_examples: int) -> int:
        return self.checkpoint_steps or self.checkpoint_epochs * self.epoch_steps(num_examples)


def flag_fields() -> tuple[dataclasses.Field, ...]:
    """The fields of `Config` that are flags."""
    return tuple(f for f in dataclasses.fields(Config) if f.metadata)
