"""`vshift.VarianceProbe`: every BN layer's train, running and eval variance, in anybody's loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from vshift.auditing.guard import random_state_kept, run_eagerly, unwrapped
from vshift.auditing.measuring import TRACED, trace_training
from vshift.auditing.moments import LayerStats
from vshift.auditing.probes import make_subject, run_pass
from vshift.auditing.result import plain
from vshift.auditing.samples import AuditError, Unpack, collect, unpack
from vshift.shift.stats import batch_norms, shift_ratio

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]
_Met = tuple[dict[str, LayerStats], set[str]]  # statistics in eval mode; layers that noise reaches


class VarianceProbe:
    """Watches a training loop; two lines attach it:

        probe = VarianceProbe(model)
        ...                                       # an epoch of any loop with torch.optim
        probe.end_epoch(loader, test_accuracy=…)  # a row for each BN layer

    No module gets a hook and nothing in the model changes, so that compiled, DDP-wrapped, AMP and
    channels_last models train as they would: after each optimizer step the batches' statistics are
    worked out from how far BN's running statistics moved. With momentum m and k forwards since the
    last step

        new = (1 − m)^k · old + (1 − (1 − m)^k) · seen

    gives `seen`, the batches' mean and UNBIASED variance (the later of k batches weigh more). From
    float32 buffers it is exact to about 1e-7/m of its size.

    Args:
        model: any module with BatchNorm1d/2d/3d or SyncBatchNorm, wrapped or not. SyncBatchNorm
            gives the statistics over all processes; on the CPU it trains in a single process only,
            without a process group.
        optimizer: follow this one's steps; without it those of every optimizer. Loops without a
            torch.optim optimizer call `step()` themselves, once after each training step.

    Raises:
        AuditError: no BN layer that keeps running statistics.

    Not seen are layers with momentum 0, and statistics that other code writes in the same step (a
    checkpoint loaded in mid-epoch; call `restart` after it).
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.model = unwrapped(model)
        self.layers = batch_norms(self.model)
        if not self.layers:
            raise AuditError("the model has no batch norm that keeps running statistics")
        self.rows: list[Row] = []
        self.metrics: list[Row] = []
        self._vectors: dict[str, Tensor] = {}
        self._began = perf_counter()
        self.restart()
        follow = register_optimizer_step_post_hook
        if optimizer is not None:
            follow = optimizer.register_step_post_hook
        self._handle = follow(self._stepped)

    def _stepped(self, *_: Any) -> None:
        self.step()

    @torch.no_grad()
    def restart(self) -> None:
        """Begin an epoch: forget the batches so far and take the buffers as they are now."""
        self._old = {n: self._buffers(layer) for n, layer in self.layers.items()}
        self._sums = {
            n: [torch.zeros_like(mean), torch.zeros_like(variance), torch.zeros_like(tracked)]
            for n, (mean, variance, tracked) in self._old.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Take in what BN saw since the last call; without a forward in between, nothing.

        On the model's device, without waiting for it.
        """
        for name, layer in self.layers.items():
            old, new = self._old[name], self._buffers(layer)
            forwards = new[2] - old[2]
            kept = _kept(layer, old[2], forwards)
            # Without a forward kept is 1: then 0/1, and a weight of 0.
            moved = torch.where(forwards > 0, 1 - kept, torch.ones_like(kept))
            weight = forwards.clamp(min=0)
            for i in (0, 1):
                seen = (new[i] - kept * old[i]) / moved
                self._sums[name][i] += torch.where(
                    weight > 0, seen * weight, torch.zeros_like(seen)
                )
            self._sums[name][2] += weight
            self._old[name] = new

    def _buffers(self, layer: _BatchNorm) -> list[Tensor]:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        assert layer.num_batches_tracked is not None
        buffers = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
        return [buffer.detach().to(torch.float64, copy=True) for buffer in buffers]

    def end_epoch(
        self,
        loader: Iterable[Any] | None = None,
        *,
        unpack: Unpack = unpack,
        batches: int | None = 30,
        **metrics: float,
    ) -> pd.DataFrame:
        """Close an epoch: one row for each BN layer, in the columns of a run folder.

        Args:
            loader: training inputs [N, …], two batches at least, for the eval variance: of each
                BN's input with the whole model in eval mode. Without it that column is empty. The
                model and all random states stay as they are.
            batches: use the first so many.
            metrics: of this epoch, for `metrics.jsonl`: test_accuracy (percent), test_loss, ….

        Returns:
            This epoch's rows.

        Raises:
            AuditError: batches that the model cannot be given.
        """
        import pandas as pd

        self.step()
        epoch = len(self.metrics) + 1
        met = None if loader is None else self._met(loader, unpack, batches)
        rows = [self._row(epoch, i, n, met) for i, n in enumerate(self.layers)]
        self.rows += rows
        seconds = perf_counter() - self._began
        self.metrics.append({"epoch": epoch, "seconds": round(seconds, 3), **metrics})
        self.restart()
        self._began = perf_counter()
        return pd.DataFrame(rows)

    def _met(self, loader: Iterable[Any], split: Unpack, batches: int | None) -> _Met:
        device = next(iter(self.layers.values())).running_mean.device  # type: ignore[union-attr]
        with random_state_kept([loader]), run_eagerly(self.model):
            samples = collect(loader, device, batches, split)
            subject = make_subject(self.model, 0, None)
            arriving = trace_training(subject, samples.given[0].head(TRACED)).arriving
            with subject.mode("evaluated"):
                stats = run_pass(subject, lambda: iter(samples.given)).stats
        return stats, {name for name, sources in arriving.items() if sources}

    def _row(self, epoch: int, index: int, name: str, met: _Met | None) -> Row:
        layer, (means, variances, count) = self.layers[name], self._sums[name]
        seen = float(count) > 0 and layer.momentum != 0
        train = (variances / count).cpu() if seen else None
        running = self._old[name][1].cpu()
        evaluated = met[0][name].average() if met is not None and name in met[0] else None
        vectors = {"running_mean": self._old[name][0], "running_variance": running}
        if train is not None:
            vectors |= {"train_mean": means / count, "train_variance": train}
        if evaluated is not None:
            vectors |= {"eval_mean": evaluated.mean, "eval_variance": evaluated.variance}
        self._vectors |= {f"{name}.{key}": vector for key, vector in vectors.items()}
        return {
            "epoch": epoch,
            "index": index,
            "layer": name,
            "channels": layer.num_features,
            "noise_before": None if met is None else name in met[1],
            "train_variance": None if train is None else float(train.mean()),
            "running_variance": float(running.mean()),
            "eval_variance": None if evaluated is None else float(evaluated.variance.mean()),
            "shift_ratio": None if evaluated is None else shift_ratio(running, evaluated.variance),
        }

    def frame(self) -> pd.DataFrame:
        """All epochs' rows."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def save(
        self,
        folder: Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        **summary: float,
    ) -> Path:
        """Write a run folder that `vshift compare` and `vshift report` read.

        Args:
            folder: `<runs-dir>/<name>/seed-<n>`.
            config: what identifies the run, in nested dicts; runs of one name need one config.
            summary: final numbers, by default those of the last epoch's metrics.

        Raises:
            RunError: it cannot be written, or holds another run; VShiftError without an epoch.
        """
        from vshift.auditing.saving import save_run

        if not self.metrics:
            raise AuditError("there is no epoch to save: call end_epoch() first")
        return save_run(
            Path(folder),
            rows=[plain(row) for row in self.rows],
            metrics=[plain(row) for row in self.metrics],
            vectors={n: v.float().cpu().numpy() for n, v in self._vectors.items()},
            parameters=sum(p.numel() for p in self.model.parameters()),
            device=str(next(iter(self._old.values()))[0].device),
            config=dict(config or {}),
            summary=dict(summary),
        )

    def remove(self) -> None:
        """Stop watching; may be called again."""
        self._handle.remove()

    def __enter__(self) -> VarianceProbe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()


def _kept(layer: _BatchNorm, old: Tensor, forwards: Tensor) -> Tensor:
    """The share of the old running statistics in the new ones."""
    if layer.momentum is None:  # a simple average over all batches
        return old / (old + forwards).clamp(min=1)
    return torch.pow(torch.as_tensor(1.0 - layer.momentum, dtype=torch.float64), forwards)
