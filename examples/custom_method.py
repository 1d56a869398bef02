"""A method of your own: every reward's gradient with the same length. On PYTHONPATH its import path is ``custom_method:Normalised``."""

import numpy as np

from marble_core import Balance, Balancer


class Normalised(Balancer):
    def needs_gram(self, step):  # on which steps every reward's gradient is wanted
        return True

    def weigh(self, G_KK, has_signal_K, signal=None):  # from their Gram matrix to weights of the gradients
        norm_K = np.where(has_signal_K, np.sqrt(np.diag(G_KK)), 1.0)
        alpha_K = has_signal_K / max(1, has_signal_K.sum())
        return Balance(alpha_K * norm_K.mean() / norm_K, alpha_K, has_signal_K)
