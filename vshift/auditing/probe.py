"""`vshift.VarianceProbe`: every BN layer's train, running and eval variance, in any loop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import register_optimizer_step_post_hook

from vshift.auditing.distances import is_initial
from vshift.auditing.guard import preserving_random_state, run_eagerly, unwrap
from vshift.auditing.passes import AuditedModel, Pass
from vshift.auditing.samples import AuditError, Unpack, collect, unpack
from vshift.shift.stats import Moments, batch_norms, mean_shift, shift_ratio
from vshift.text import pluralize

if TYPE_CHECKING:
    import pandas as pd

    from vshift.runs.schema import LayerRow


_INITIAL = (
    "the running statistics are the initial ones, mean 0 and variance 1: nothing was trained yet"
)


class VarianceProbe:
    """Watches a training loop; two lines attach it:

        probe = VarianceProbe(model)
        ...                                       # an epoch of any loop with torch.optim
        probe.end_epoch(loader, test_accuracy=…)  # one row per BN layer

    No module gets a hook and nothing in the model changes, so that compiled, DDP-wrapped, AMP and
    channels_last models train as they would: after each optimizer step the batches' statistics are
    computed from the change of BN's running statistics. With momentum m and k forwards since the
    last step

        new = (1 − m)^k · old + (1 − (1 − m)^k) · batch

    gives `batch`, the batches' mean and UNBIASED variance (the later of k batches weigh more). From
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
        self.model = unwrap(model)
        self.layers = batch_norms(self.model)
        if not self.layers:
            raise AuditError("the model has no batch norm that keeps running statistics")
        self.rows: list[LayerRow] = []
        self.metrics: list[dict[str, Any]] = []
        self._vectors: dict[str, Tensor] = {}
        self._began = perf_counter()
        self.restart()
        follow = register_optimizer_step_post_hook
        if optimizer is not None:
            follow = optimizer.register_step_post_hook
        self._handle = follow(lambda *_: self.step())

    def __repr__(self) -> str:
        """The last epoch's shift ratios in a line."""
        text = f"VarianceProbe of {pluralize(len(self.layers), 'BN layer')}"
        if not self.metrics:
            return f"{text}, no epoch closed yet" + (f"; {_INITIAL}" if self._are_initial else "")
        from vshift.runs.summary import summarize_ratios

        last = [row for row in self.rows if row.epoch == len(self.metrics)]
        found = summarize_ratios({row.layer: row.shift_ratio for row in last})
        text += f", {pluralize(len(self.metrics), 'epoch')}"
        if found["shift_ratio_max"] is None:
            return f"{text}, no eval variance measured"
        return (
            f"{text}, shift ratio {found['shift_ratio_mean']:.3f} on average, "
            f"{found['shift_ratio_max']:.3f} at {found['shift_ratio_max_layer']}"
        )

    @property
    def _are_initial(self) -> bool:
        """Whether no layer's running statistics were ever updated."""
        every = (Moments(mean, variance) for mean, variance, _ in self._old.values())
        return all(map(is_initial, every))

    @torch.no_grad()
    def restart(self) -> None:
        """Begin an epoch: forget the batches so far and take the buffers as they are now."""
        self._old = {name: _buffers(layer) for name, layer in self.layers.items()}
        self._sums = {
            name: [torch.zeros_like(buffer) for buffer in old] for name, old in self._old.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Take in what BN saw since the last call; without a forward in between, nothing.

        On the model's device, without waiting for it.
        """
        for name, layer in self.layers.items():
            old, new = self._old[name], _buffers(layer)
            forwards = new[2] - old[2]
            if layer.momentum is None:  # a simple average over all batches
                kept = old[2] / (old[2] + forwards).clamp(min=1)
            else:
                share = torch.as_tensor(1.0 - layer.momentum, dtype=torch.float64)
                kept = torch.pow(share, forwards)
            # Without a forward `kept` is 1: then 0/1, and a weight of 0.
            moved = torch.where(forwards > 0, 1 - kept, torch.ones_like(kept))
            weight = forwards.clamp(min=0)
            for i in (0, 1):
                batch = (new[i] - kept * old[i]) / moved
                self._sums[name][i] += torch.where(
                    weight > 0, batch * weight, torch.zeros_like(batch)
                )
            self._sums[name][2] += weight
            self._old[name] = new

    def end_epoch(
        self,
        loader: Iterable[Any] | None = None,
        *,
        unpack: Unpack = unpack,
        batches: int | None = 30,
        **metrics: float,
    ) -> pd.DataFrame:
        """Close an epoch: one row per BN layer, in the columns of a run folder.

        Args:
            loader: training inputs [N, …], at least two batches, for the eval variance: of each
                BN's input with the whole model in eval mode; and for lag and mean shift, from the
                same input in training mode. Without it those columns are empty. The model and all
                random states stay as they are.
            batches: number of batches used; None is all.
            metrics: of this epoch, for `metrics.jsonl`: test_accuracy (percent), test_loss, ….

        Returns:
            This epoch's rows.

        Raises:
            AuditError: batches that the model cannot be given.
        """
        self.step()
        if self._are_initial:
            warnings.warn(f"VarianceProbe: {_INITIAL}", stacklevel=2)
        epoch = len(self.metrics) + 1
        train_pass, eval_pass, noisy = None, None, None
        if loader is not None:
            device = next(iter(self._old.values()))[0].device
            with preserving_random_state([loader]), run_eagerly(self.model):
                samples = collect(loader, device, batches, unpack)
                model = AuditedModel(self.model)
                samples.rows_are_samples = model.rows_are_samples(samples)
                arriving = model.trace("train", samples).arriving
                train_pass = model.run("train", lambda: iter(samples.batches))
                eval_pass = model.run("eval", lambda: iter(samples.batches))
            noisy = {name for name, sources in arriving.items() if sources}
        rows = [
            self._row(epoch, index, name, train_pass, eval_pass, noisy)
            for index, name in enumerate(self.layers)
        ]
        self.rows += rows
        seconds = perf_counter() - self._began
        self.metrics.append({"epoch": epoch, "seconds": round(seconds, 3), **metrics})
        self.restart()
        self._began = perf_counter()
        return _frame(rows)

    def _row(
        self,
        epoch: int,
        index: int,
        name: str,
        train_pass: Pass | None,
        eval_pass: Pass | None,
        noisy: set[str] | None,
    ) -> LayerRow:
        from vshift.runs.schema import LayerRow

        layer, (means, variances, count) = self.layers[name], self._sums[name]
        running_mean, running = self._old[name][0], self._old[name][1].cpu()
        train = (variances / count).cpu() if float(count) > 0 and layer.momentum != 0 else None
        recent = None if train_pass is None else train_pass.average(name)
        eval_ = None if eval_pass is None else eval_pass.average(name)
        vectors = {"running_mean": running_mean, "running_variance": running}
        if train is not None:
            vectors |= {"train_mean": means / count, "train_variance": train}
        if eval_ is not None:
            vectors |= {"eval_mean": eval_.mean, "eval_variance": eval_.variance}
        self._vectors |= {f"{name}.{key}": vector for key, vector in vectors.items()}
        return LayerRow(
            epoch=epoch,
            index=index,
            layer=name,
            channels=layer.num_features,
            noise_before=None if noisy is None else name in noisy,
            train_variance=None if train is None else float(train.mean()),
            running_variance=float(running.mean()),
            eval_variance=None if eval_ is None else float(eval_.variance.mean()),
            shift_ratio=None if eval_ is None else shift_ratio(running, eval_.variance),
            lag_ratio=None if recent is None else float(recent.variance.mean() / running.mean()),
            mean_shift=(
                None
                if recent is None or eval_ is None
                else float(mean_shift(recent.mean, eval_.mean, recent.variance))
            ),
        )

    def frame(self) -> pd.DataFrame:
        """All epochs' rows."""
        return _frame(self.rows)

    def save(
        self,
        folder: Path | str,
        *,
        config: Mapping[str, Any] | None = None,
        **summary: float,
    ) -> Path:
        """Write a run folder that `vshift compare` and `vshift report` read.

        Args:
            folder: `<runs-dir>/<name>/seed-<n>`; an earlier run there is replaced.
            config: what identifies the run, in nested dicts; runs of one name need one config.
            summary: final numbers, by default those of the last epoch's metrics.

        Raises:
            RunError: a path of another form, or one that cannot be written.
            AuditError: there is no epoch yet.
        """
        import yaml

        from vshift.config.identity import hash_of
        from vshift.errors import RunError
        from vshift.runs import PROBE, RunFolder, now, versions
        from vshift.runs.summary import summarize_layers, with_errors

        if not self.metrics:
            raise AuditError("there is no epoch to save: call end_epoch() first")
        path = Path(folder)
        name, seed = path.absolute().parent.name, path.name.removeprefix("seed-")
        if not (path.name.startswith("seed-") and seed.isdecimal()):
            raise RunError(
                f"{path}: a run folder is called <name>/seed-<n>, for instance mine/seed-0"
            )
        whole = {
            "epochs": len(self.metrics), **(config or {}), "name": name, "seeds": [int(seed)]
        }  # fmt: skip
        last = {k: v for k, v in self.metrics[-1].items() if k not in ("seconds", "step")}
        run = RunFolder.create(path)
        run.clear()
        run.write_config(yaml.safe_dump(whole))
        run.write_run(
            {
                "status": "running",
                "name": name,
                "seed": int(seed),
                "config_hash": hash_of(whole),
                "started": now(),
                "seconds": sum(row["seconds"] for row in self.metrics),
                "device": str(next(iter(self._old.values()))[0].device),
                "source": PROBE,
                **versions(),
            }
        )
        for row in self.metrics:
            run.append_metrics(row)
        run.append_layers([row.to_dict() for row in self.rows])
        run.write_channels({n: v.float().cpu().numpy() for n, v in self._vectors.items()})
        run.write_summary(
            {
                **with_errors(last),
                **summarize_layers(row for row in self.rows if row.epoch == last["epoch"]),
                "parameters": sum(p.numel() for p in self.model.parameters()),
                **summary,
            }
        )
        run.mark_finished("done")
        return path

    def remove(self) -> None:
        """Stop watching; may be called again."""
        self._handle.remove()

    def __enter__(self) -> VarianceProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def _frame(rows: Iterable[LayerRow]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([row.to_dict() for row in rows])


def _buffers(layer: _BatchNorm) -> list[Tensor]:
    """Copies of running mean, running variance and the number of batches, in float64."""
    buffers = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return [b.detach().to(torch.float64, copy=True) for b in buffers if b is not None]
