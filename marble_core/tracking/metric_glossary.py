"""What the logged numbers of the balance say, in one sentence each: the same words in the progress, in MLflow and in docs/logged_numbers.md."""

EXPERIMENT = (
    "One line per run of MARBLE's pipeline. `evaluation/mean_gain` is the mean gain over the base on held-out prompts, and "
    "`marble.decision` says what the gate made of it. Each run's description has the table."
)
GLOSSARY = {
    "alpha/NAME": "the share of the update that a reward steers",
    "alpha_star/NAME": "the share that the min-norm point (or the point of `balance.trust`) of this very step gives it, before averages, priors and limits",
    "cosine/worst": "least cosine of the update with a reward's gradient: positive means that no reward is contradicted, on this very batch",
    "held_out/worst": "the same for a direction found on half of the prompts against gradients of the other half: what holds for the next batch",
    "consistency/NAME": "cosine of a reward's gradients from two halves of the prompts: near 1 signal, near 0 noise",
    "images_needed/NAME": "images per step at which that cosine would reach .5: which reward needs more images",
    "consistency_time/NAME": "share of a squared gradient that is signal, by the gradients of the steps before: near 1 signal, near 0 noise",
    "images_needed_time/NAME": "images per step at which that share would be .5",
    "cosine/last:NAME": "cosine of the last step's update with this step's gradient of a reward: what a new batch says of an update",
    "cosine/last_worst": "the least of these",
    "projection_error": "largest error of a cosine between this step's gradients where the steps before are kept as a random projection",
    "shrinkage": "share by which `balance.gram: time` draws the cosines towards 0: 1 is no evidence and equal weights, 0 is certainty",
    "trust/p": "the exponent that `balance.trust: auto` uses; 0 is the paper's, which is infinity",
    "trust/raw": "1 where it sums the gradients as they are",
    "trust/score:P": "mean over steps of the least cosine of an exponent's last direction with a new step's gradient: what it is chosen by",
    "guard/before:NAME": "cosine of the rewards' own direction with a guard's gradient: below 0 it would lower the guard",
    "guard/push:NAME": "how far that direction was moved towards the guard, in its own length; 0 where the guard asks for nothing",
    "clamped": "share of the advantages that were cut to the range in which the loss is affine",
    "inactive": "rewards without a usable gradient in this step: their weight is 0, and their averages stay as they are",
    "stationary": "1 where no direction improves every reward, and the update is the KL's alone",
    "qp_failed": "1 where no weights meet the limits or the solver failed, and the last weights are used",
    "missing/NAME": "images without a value of a reward that applies to them: they take no part in its statistics or gradient; a note says why",
    "no_signal/NAME/SOURCE": "prompts of a source whose images a reward does not tell apart, so that they teach it nothing",
    "watch/mean_gain": "mean gain over the base on prompts that are watched while it trains, in its standard deviations (docs/watching.md)",
    "watch/gain/NAME": "the same of one reward",
    "watch/edge_density": "change of the share of pixels at edges, in the base's standard deviations: a witness that nothing trains on",
    "watch/colour_entropy": "the same of the entropy of an image's colours: it falls where images are emptied",
    "watch/dark_share": "the same of the share of dark pixels; it moves under any training of the demo and raises no alarm by itself",
    "watch/latent_norm": "the same of the root mean square of the latents; as above",
    "watch/ties/NAME": "share of watched prompts whose images all have the same reward, and so no signal",
    "watch/diversity": "relative change of the distance between the images of one prompt: -.2 is a fifth lost",
    "watch/alarm": "1 where a witness or a reward's fall shows hacking or damage; loss of diversity is told apart",
    "gpu_hours/estimated": "GPU hours that the run was estimated at, at most, before it began: what `--max-gpu-hours` is held against",
    "gpu_hours/spent": "GPU hours of the run so far: seconds of its stages times the GPUs that they hold, over all attempts; not written without GPUs",
    "metrics_failed": "groups of these numbers that could not be computed in this step; a note says why, and the step was made all the same",
}


def as_markdown() -> str:
    """A table, for MLflow's page of a run and for docs/logged_numbers.md."""
    return "\n".join(["| name | says |", "|---|---|", *(f"| `{name}` | {says} |" for name, says in GLOSSARY.items())])


def of_the_progress_line() -> str:
    """What stands in the line that is printed after each step."""
    shown = {"(.20)": "alpha/NAME", "worst cosine": "cosine/worst", "held out": "held_out/worst"}
    return "; ".join(f"{mark}: {GLOSSARY[name]}" for mark, name in shown.items())
