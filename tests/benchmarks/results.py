"""A bench's results made up by hand: one case, vshift with and without logging, one peer."""

from benchmarks.results import (
    Bound,
    CaseResult,
    Contender,
    DeviceInfo,
    LeftOut,
    LoggingCost,
    Ratio,
    Results,
    Series,
)

IMAGES = 1000
BOUND = Bound(peaks="measured", arithmetic=4000, eager=1000, inductor=2000, ideal=3000)


def contender(name, seconds, *, kind=None, log=None, peer=None, memory=None):
    speeds = Series.of([IMAGES / s for s in seconds])
    return Contender(
        name=name, kind=kind, step=kind and "eager", peer=peer, log=log, setup_seconds=1.0,
        loss=2.3, peak_memory=memory, seconds=Series.of(seconds), images_per_second=speeds,
        shares=BOUND.shares(speeds.median),
    )  # fmt: skip


def make_results(kind="cpu", name="Some(R) Processor", memory=None, **fields):
    on = contender("vshift auto + log", [1.01, 2.02, 1.01], kind="auto", log=True, memory=memory)
    off = contender("vshift auto", [1.0, 2.0, 1.0], kind="auto", log=False, memory=memory)
    peer = contender("(a) plain", [3.03, 4.04, 3.03], peer="plain", memory=memory)
    case = CaseResult(
        network="preresnet-20", batch=128, noise="none", images=IMAGES, parameters=5, macs=7,
        bounds=[BOUND], contenders=[on, off, peer],
        ratios=[
            Ratio(contender=on.name, to=peer.name, speed=Series.of([3.0, 2.0, 3.0])),
            Ratio(contender=off.name, to=peer.name, speed=Series.of([9.0, 9.0, 9.0])),
        ],
        logging=[LoggingCost(kind="auto", overhead=Series.of([0.01, 0.01, -0.002]))],
        left_out=[LeftOut(contender="(c) airbench", reason="it takes too long", failed=False)],
        clock_mhz=2600.0,
    )  # fmt: skip
    device = DeviceInfo(
        kind=kind, name=name, cores=2, threads=2, clock_mhz=2600.0, clock_mhz_max=None, load=0.25,
        flops=1.2e12, bytes_per_second=14e9,
    )  # fmt: skip
    values = {
        "created": "2026-01-02T00:00:00+00:00", "device": device,
        "versions": {"python": "3.11.7", "torch": "2.15.0", "cuda": None}, "git": "a" * 40,
        "steps": 15, "repeats": 3, "budget": None, "cases": [case], "not_raced": [],
    }  # fmt: skip
    return Results(**{**values, **fields})
