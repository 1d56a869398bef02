"""A training step written out once more from docs/algorithm.md, in plain torch and numpy.

Of marble_core it knows the configuration and ``derive``, the seeds. The LoRA is merged into the frozen weights here (W + alpha/r B A),
each reward has its own autograd backward, the QP is solved by enumeration, and Adam is six lines.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.func import functional_call

from marble_core.runtime.seeding import derive
from oracles import min_norm_by_enumeration, written_loss, written_pairs

SOURCES = ("general", "ocr", "geneval")
LR, WEIGHT_DECAY, BETAS, EPSILON = 1e-3, 1e-4, (0.9, 0.999), 1e-8  # of builders.learner


def written_mix(prompts, count, step, seed):
    """The prompts of a step where every source has a whole number of steps' prompts, all of them distinct."""
    columns = []
    for source in [s for s in SOURCES if any(p.source == s for p in prompts)]:
        own = [p for p in prompts if p.source == source]
        share = count // len({p.source for p in prompts})
        steps = len(own) // share
        assert steps * share == len(own) == len({p.text for p in own})
        rng = np.random.default_rng(derive(seed, "mix", source, step // steps))
        shuffled = [own[i] for i in rng.permutation(len(own))]
        columns.append(shuffled[rng.permutation(steps)[step % steps] :: steps])
    return [p for row in zip(*columns, strict=True) for p in row]


def written_advantages(R_NK, group_N, std="batch"):
    """(R - mean of the group) / (std + 1e-4) over what is not NaN, one number at a time."""
    N, K = R_NK.shape
    A_NK = np.zeros((N, K))
    for k in range(K):
        step = [R_NK[i, k] for i in range(N) if not math.isnan(R_NK[i, k])]
        for i in range(N):
            group = [R_NK[j, k] for j in range(N) if group_N[j] == group_N[i] and not math.isnan(R_NK[j, k])]
            if not math.isnan(R_NK[i, k]) and max(group) > min(group):
                A_NK[i, k] = (R_NK[i, k] - np.mean(group)) / (np.std(step if std == "batch" else group) + 1e-4)
    return A_NK


def written_mixed(R_NK, group_N, method):
    """The one advantage an image of ``weighted_sum`` or ``gdpo``, for images that each have a valid reward."""
    valid = [[k for k in range(R_NK.shape[1]) if not math.isnan(R_NK[i, k])] for i in range(len(R_NK))]
    if method == "weighted_sum":
        mean = np.array([[np.mean([R_NK[i, k] for k in valid[i]])] for i in range(len(R_NK))])
        return written_advantages(mean, group_N)[:, 0]
    A_NK = written_advantages(R_NK, group_N, "group")
    mean = np.array([np.mean([A_NK[i, k] for k in valid[i]]) for i in range(len(R_NK))])
    return (mean - mean.mean()) / (mean.std() + 1e-4)


def written_halves(prompts):
    """Half a or b of each prompt: those of a source take turns, and so do the sources with their first."""
    order, seen, halves = [], {}, []
    for p in prompts:
        if p.source not in order:
            order.append(p.source)
        halves.append((order.index(p.source) + 1 + seen.get(p.source, 0)) % 2)
        seen[p.source] = seen.get(p.source, 0) + 1
    return np.array(halves)


def written_dpm2(velocity, x, steps, shift=1.0):
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2) from its exponential integrator, with first and last step of first order."""
    straight = 1 - np.linspace(1, 1 / 1000, steps + 1)[::-1][:-1]
    times = np.append(shift * straight / (1 + (shift - 1) * straight), 0.0).astype(np.float32).astype(np.float64)
    half_log_snr = [math.log((1 - t) / t) for t in times[:-1]] + [math.inf]
    before = None
    for n in range(steps):
        clean = x - times[n] * velocity(x, torch.full((len(x),), times[n], dtype=torch.float32))
        h, slope = half_log_snr[n + 1] - half_log_snr[n], 0.0
        if before is not None and n < steps - 1:
            slope = (clean - before) / (half_log_snr[n] - half_log_snr[n - 1]) * h / 2
        x = times[n + 1] / times[n] * x + (1 - times[n + 1]) * (1 - math.exp(-h)) * (clean + slope)
        before = clean
    return x, torch.tensor(times[:-1], dtype=torch.float32)


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient.values()]).double().numpy()


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


@dataclass
class WrittenLearner:
    """The same learner from the same weights; ``rewards`` are (channel, the source it applies to or None)."""

    config: object
    model: object
    rewards: tuple
    default: dict
    old: dict
    ema: dict
    updates: int = 0
    step: int = 0
    alpha: np.ndarray | None = None
    norms: np.ndarray | None = None
    first: dict = field(default_factory=dict)
    second: dict = field(default_factory=dict)
    adam: int = 0
    seen: dict = field(default_factory=dict)  # what the last step computed on its way

    @classmethod
    def of(cls, learner, model):
        copies = [
            {n: p.detach().clone() for n, p in w.items()}
            for w in (learner.policy.parameters_of("default"), learner.policy.parameters_of("old"), learner.policy.ema)
        ]
        rewards = tuple((s.channel, s.source) for s in learner.scorers)
        return cls(learner.config, model, rewards, *copies, updates=learner.updates)

    def velocity(self, lora, x, t, conditioning):
        """With the LoRA merged into the frozen weights; without one for the reference."""
        frozen, dtype = dict(self.model.transformer.named_parameters()), self.model.dtype
        scale = self.config.lora.alpha / self.config.lora.rank
        merged = {
            n.replace(".lora_A.", "."): frozen[n.replace(".lora_A.", ".")] + scale * lora[n.replace("lora_A", "lora_B")] @ A
            for n, A in (lora or {}).items()
            if ".lora_A." in n
        }
        inputs = (x.to(dtype), conditioning.tokens, conditioning.pooled, t.to(dtype) * 1000)
        return functional_call(self.model.transformer, merged, inputs, {"return_dict": False})[0]

    def sample(self, prompts):
        """x0_NCHW by ``old``, the solver's times, and each image's own conditioning."""
        rollout, seed = self.config.rollout, self.config.seed
        texts = [p.text for p in prompts for _ in range(rollout.images_per_prompt)]
        conditioning = self.model.encode(texts)
        seeds = [derive(seed, "rollout", self.step, i) for i in range(len(texts))]
        x = torch.stack([torch.randn(self.model.latent_shape, generator=torch.Generator().manual_seed(s)) for s in seeds])
        with torch.no_grad():
            x0, t_S = written_dpm2(lambda x, t: self.velocity(self.old, x, t, conditioning), x.double(), rollout.steps)
        return x0, t_S, conditioning

    def table(self, images, prompts):
        R_NK = np.full((len(images), len(self.rewards)), np.nan)
        for i, image in enumerate(images):
            for k, (channel, source) in enumerate(self.rewards):
                if source in (None, prompts[i // self.config.rollout.images_per_prompt].source):
                    R_NK[i, k] = image[..., channel].astype(float).mean() / 255
        return R_NK

    def gradients(self, x0, t_S, conditioning, weights_JN, A_JN):
        """One gradient a row of sum_it weight_i l(A_i), and the KL's."""
        loss, leaves = self.config.loss, {n: p.clone().requires_grad_() for n, p in self.default.items()}
        totals = [{n: torch.zeros_like(p) for n, p in leaves.items()} for _ in range(len(A_JN) + 1)]
        for x_t, t_N, kl_N in written_pairs(self.config.seed, self.step, x0, t_S, loss):
            with torch.no_grad():
                v_old, v_ref = (self.velocity(lora, x_t, t_N, conditioning) for lora in (self.old, None))
            v = self.velocity(leaves, x_t, t_N, conditioning)
            losses = [
                (torch.as_tensor(w_N) * written_loss(v, v_old, x_t, x0, t_N, torch.as_tensor(A_N), loss)).sum()
                for w_N, A_N in zip(weights_JN, A_JN, strict=True)
            ]
            losses.append((torch.as_tensor(kl_N) * (v - v_ref).pow(2).mean((1, 2, 3))).sum())
            for total, one in zip(totals, losses, strict=True):
                found = torch.autograd.grad(one, list(leaves.values()), retain_graph=True, allow_unused=True)
                for n, g in zip(leaves, found, strict=True):
                    total[n] += 0 if g is None else g
        return totals[:-1], totals[-1]

    def weigh(self, gradients):
        """w_K of marble, mgda, equal or single; alpha's average, or between two QPs its last one on averaged norms."""
        balance, flats = self.config.balance, [flat(g) for g in gradients]
        norms = np.array([np.linalg.norm(g) for g in flats])
        if balance.method == "equal":
            return np.full(len(norms), 1 / len(norms))
        if balance.method.startswith("single:"):
            return np.array([float(n == balance.method[7:]) for n in self.config.reward_names])
        if self.step % balance.every:
            return self.alpha * self.norms.mean() / self.norms
        normal = norms if balance.method == "marble" else np.ones(len(norms))
        unit = np.array([g / n for g, n in zip(flats, normal, strict=True)])
        star, _ = min_norm_by_enumeration(unit @ unit.T)
        rho, steered = balance.rho, star
        self.alpha = star if self.alpha is None else rho * self.alpha + (1 - rho) * star
        self.norms = normal if self.norms is None else rho * self.norms + (1 - rho) * normal
        if balance.every == 1:
            steered = self.alpha
        self.seen["alpha"] = steered
        return steered * normal.mean() / normal

    def held_out(self, x0, t_S, conditioning, weight_KN, A_KN, prompts):
        """Each half's min-norm direction against the other half's gradients, both ways averaged."""
        in_a = np.repeat(written_halves(prompts), self.config.rollout.images_per_prompt) == 0
        rows, _ = self.gradients(
            x0, t_S, conditioning, np.concatenate([weight_KN * in_a, weight_KN * ~in_a]), np.concatenate([A_KN, A_KN])
        )
        vectors = np.array([flat(g) for g in rows])
        halves, ways = np.split(vectors, 2), []
        for own, other in (halves, halves[::-1]):
            unit = own / np.linalg.norm(own, axis=1, keepdims=True)
            alpha, _ = min_norm_by_enumeration(unit @ unit.T)
            ways.append([cosine(alpha @ unit, g) for g in other])
        return np.mean(ways, axis=0)

    def run(self, prompts, x0=None):
        """One step. ``x0`` are the latents that the step under test sampled, which its rewards' rounding hangs on."""
        config = self.config
        T, A_max, method = config.loss.timesteps, config.loss.advantage_max, config.balance.method
        drawn = written_mix(prompts, config.rollout.prompts, self.step, config.seed)
        own_x0, t_S, conditioning = self.sample(drawn)
        self.seen = {"x0": own_x0, "prompts": drawn}
        x0 = (own_x0 if x0 is None else x0).to(self.model.dtype)
        R_NK = self.table(self.model.decode(x0), drawn)
        group_N = np.repeat(np.arange(len(drawn)), config.rollout.images_per_prompt)
        mask_NK = ~np.isnan(R_NK)
        weight_KN = (mask_NK / mask_NK.sum(0)).T / T
        A_KN = written_advantages(R_NK, group_N, config.loss.advantage_std).T
        self.seen |= {"clamped": (np.abs(A_KN.T[mask_NK]) > A_max).mean()}
        A_KN = A_KN.clip(-A_max, A_max)
        self.seen["rows"] = (x0, t_S, conditioning, weight_KN, A_KN)
        if method in ("weighted_sum", "gdpo"):
            A_N = written_mixed(R_NK, group_N, method)
            self.seen["clamped"] = (np.abs(A_N) > A_max).mean()
            (mixed,), kl = self.gradients(
                x0, t_S, conditioning, [np.full(len(A_N), 1 / len(A_N) / T)], [A_N.clip(-A_max, A_max)]
            )
            total = mixed
        else:
            gradients, kl = self.gradients(x0, t_S, conditioning, weight_KN, A_KN)
            w_K = self.weigh(gradients)
            total = {n: sum(float(w) * g[n] for w, g in zip(w_K, gradients, strict=True)) for n in kl}
            if method == "marble" and self.step % config.balance.every == 0:
                self.seen["held_out"] = self.held_out(x0, t_S, conditioning, weight_KN, A_KN, drawn)
        gradient = {n: total[n] + config.loss.kl_beta * kl[n] for n in kl}
        self.seen |= {"gradient": gradient, "reward_part": flat(total), "kl_part": config.loss.kl_beta * flat(kl)}
        self.update(gradient)
        self.step += 1

    def update(self, gradient):
        """Clipping, AdamW, then old and the EMA, by the updates before this one."""
        optimizer, u = self.config.optimizer, self.updates
        norm = float(np.linalg.norm(flat(gradient)))
        self.seen["norm"], self.adam = norm, self.adam + 1
        eta, decay = min(optimizer.eta_rate * u, optimizer.eta_max), min(optimizer.ema, (1 + u) / (10 + u))
        for n, p in self.default.items():
            g = gradient[n] * min(1.0, optimizer.clip_norm / norm)
            self.first[n] = BETAS[0] * self.first.get(n, 0) + (1 - BETAS[0]) * g
            self.second[n] = BETAS[1] * self.second.get(n, 0) + (1 - BETAS[1]) * g**2
            m, s = self.first[n] / (1 - BETAS[0] ** self.adam), self.second[n] / (1 - BETAS[1] ** self.adam)
            self.default[n] = p * (1 - LR * WEIGHT_DECAY) - LR * m / (s.sqrt() + EPSILON)
            self.old[n] = eta * self.old[n] + (1 - eta) * self.default[n]
            self.ema[n] = decay * self.ema[n] + (1 - decay) * self.default[n]
        self.updates += 1
