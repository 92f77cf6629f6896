"""Every code of a finding in plain words: what it is called, usual causes, what to do."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    title: str
    causes: str
    advice: str


_RECALIBRATE = "re-estimate with `vshift.recalibrate(model, loader)` or `vshift audit --fix`"

WORDS: dict[str, Words] = {
    "nonfinite": Words(
        "running statistics hold inf, NaN or a negative variance",
        "one bad batch or an overflow in low precision, or weights averaged with negative factors; "
        "training mode never reads these buffers, so the loss stayed fine",
        f"{_RECALIBRATE}, and skip batches whose loss is not finite",
    ),
    "never_updated": Words(
        "running statistics were never updated",
        "a checkpoint without buffers (parameters only, `strict=False`, another prefix), an EMA, "
        "SWA or federated average of the parameters alone, momentum 0, or BN in eval mode in "
        "training",
        f"load or average the buffers as well; {_RECALIBRATE}",
    ),
    "initial_bias": Words(
        "running statistics still lean towards their initial values",
        "too few training steps since the statistics were (re)set",
        f"train on, use momentum=None for a simple average, or {_RECALIBRATE}",
    ),
    "momentum_low": Words(
        "momentum is too low for the number of steps",
        "a decay of another framework taken for PyTorch's momentum, which is 1 − decay",
        f"set momentum between 0.01 and 0.1 or to None; {_RECALIBRATE}",
    ),
    "momentum_high": Words(
        "momentum is so high that only the last batches count",
        "a decay of 0.9, 0.99 or 0.999 of another framework copied into PyTorch, whose momentum is "
        "1 − decay",
        f"set momentum to 0.1 or 0.01; {_RECALIBRATE}",
    ),
    "polluted": Words(
        "running statistics are polluted by artificial inputs",
        "a forward in train mode with dummy inputs: a model summary, a shape probe, a warm-up or "
        "an export",
        f"call eval() before such forwards; {_RECALIBRATE}",
    ),
    "stale": Words(
        "running statistics do not belong to these weights and inputs",
        "weights changed after the statistics (averaging, EMA, pruning, quantisation, loading a "
        "part of a checkpoint), batch norm in eval mode in training, statistics taken from other "
        "inputs, or inputs that differ from training",
        _RECALIBRATE,
    ),
    "tiny_batches": Words(
        "batches are too small for batch norm",
        "few samples a device, accumulated gradients, or a layer behind global pooling",
        "use larger batches, SyncBatchNorm, a lower momentum, group norm, or re-estimate over many "
        "batches with `vshift.recalibrate`",
    ),
    "batches_not_random": Words(
        "training batches are no random samples",
        "a sampler or a loader without shuffling: one class, scene or subject a batch",
        f"shuffle the training data; until then {_RECALIBRATE} over shuffled data",
    ),
    "several_distributions": Words(
        "one batch norm is fed by several distributions",
        "a layer shared by branches, domains, time steps or pyramid levels",
        "give every branch a batch norm of its own, or use a norm without running statistics",
    ),
    "bn_wrong_mode": Words(
        "batch norm stays in training mode after eval()",
        "a train() or eval() of one's own that does not pass the mode on",
        "call super().train(mode), and check `module.training` after eval()",
    ),
    "noise_wrong_mode": Words(
        "a noise layer stays in training mode after eval()",
        "a train() or eval() of one's own that does not pass the mode on",
        "call super().train(mode); name it in `allow_noise` if it is Monte Carlo dropout",
    ),
    "bn_out_of_reach": Words(
        "batch norm is out of eval()'s reach",
        "a layer kept in a plain list, tuple or dict, or outside the model: it is not registered, "
        "gets no mode, no device, no optimiser and no place in the checkpoint",
        "use nn.ModuleList or nn.ModuleDict",
    ),
    "noise_out_of_reach": Words(
        "a noise layer is out of eval()'s reach",
        "a dropout kept in a plain list or made inside forward(), where it is always in training "
        "mode",
        "make it in __init__ and register it, or pass training=self.training",
    ),
    "noise_live": Words(
        "noise is live in eval mode",
        "F.dropout without training=self.training, attention with a fixed dropout_p, a DropPath "
        "that ignores the mode",
        "make it follow self.training; name it in `allow_noise` if it is wanted",
    ),
    "batch_dependent": Words(
        "in eval mode a sample's output depends on who else is in the batch",
        "track_running_stats=False, BN on batch statistics in eval mode, or statistics over the "
        "batch dimension in one's own code",
        "keep running statistics, or normalise within a sample",
    ),
    "variance_below_eps": Words(
        "eps outweighs the running variance",
        "an eps of another framework lost when the weights were loaded, or activations of a very "
        "small scale",
        "set eps to the value of training; 1e-3 and 1e-5 are both usual",
    ),
    "instance_norm": Words(
        "instance norm uses running statistics in eval mode",
        "track_running_stats=True: training normalises each sample by itself, eval mode by "
        "averages over all",
        "set track_running_stats=False; the weights stay as they are",
    ),
    "spectral_norm": Words(
        "spectral norm divides by a wrong norm in eval mode",
        "buffers of spectral norm lost in a checkpoint or an average, or weights changed after "
        "them; in training mode every forward mends them a little",
        "run some batches in train mode before saving, or load the buffers as well; `vshift audit "
        "--fix` writes right ones",
    ),
    "noise_scale": Words(
        "noise changes the mean",
        "a dropout of one's own that neither divides by the keep rate in training nor multiplies "
        "by it in eval mode",
        "divide by 1 − rate in training, or use nn.Dropout",
    ),
    "output_nonfinite": Words(
        "outputs are inf or NaN in eval mode only",
        "a running scale of one's own that was never updated or is zero, or an overflow in low "
        "precision behind statistics that differ from training",
        "look at what the named module does differently in eval mode",
    ),
    "input_differs": Words(
        "inputs in eval differ from those in training",
        "another normalisation, value range, channel order or resolution",
        "use one preprocessing for both",
    ),
    "drift": Words(
        "running statistics drifted away from the reference",
        "a frozen backbone whose batch norms still updated: train() switches them back on, and "
        "requires_grad=False does not stop buffers",
        "put frozen batch norms into eval mode after every train(), and restore the reference's "
        "buffers",
    ),
    "variance_shift": Words(
        "noise shifts the variance that a batch norm meets",
        "dropout or stochastic depth before a batch norm",
        "move the noise behind the last batch norm, lower its rate, use uniform noise, or "
        "re-estimate with `vshift.recalibrate` if that helped below",
    ),
}
