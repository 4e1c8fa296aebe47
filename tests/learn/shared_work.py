"""Calls that divide their work among processes; as a program, in one of several."""

import os

import torch
import torch.distributed as dist

import gradlogp as glp
from gradlogp.core import Processes
from gradlogp.diffusion.transitions import Ancestral


def shared():
    """What each call returns that divides its work among the processes."""
    p, seeded = Processes.here(), lambda: torch.Generator().manual_seed(3)
    law = glp.GaussianMixture(
        torch.tensor([0.3, 0.7]), torch.tensor([[-2.0, 0], [2, 1]]), torch.tensor([0.5, 0.3])
    )
    score, found = glp.ExactScore(law, glp.schedules.VP()), {}
    times = glp.time_grid(score.schedule, 10)
    for size in (None, 25):
        n = 101 if size else 7
        common = {"chunk_size": size, "processes": p}
        x = found["x", size] = glp.evolve(
            Ancestral(), score, n, times, generator=seeded(), **common
        )
        found["nats", size] = glp.log_likelihood(score, x, n_steps=4, **common).log_prob
        probed = common | {"divergence": "hutchinson", "n_probes": 2, "generator": seeded()}
        found["probed", size] = torch.stack(glp.log_likelihood(score, x, n_steps=4, **probed)[:2])
        bound = glp.variational_bound(score, x, n_strata=2, generator=seeded(), **common)
        found["bound", size] = torch.stack(bound[:2])
        chain = glp.run(
            glp.langevin.MALA(0.1), law, torch.zeros(n, 2), 12, 4, generator=seeded(), **common
        )
        assert chain.complete
        assert len(chain.info.acceptance) == n
        more = glp.run(chain.kernel, law, n_steps=3, resume=chain, **common)
        found["chain", size] = torch.cat([chain.draws, more.draws], 1)
        found["noise", size] = more.resume["noise"]
    wide = glp.as_target(score=lambda x: -x)  # blocks of 16 chains
    found["wide"] = glp.run(
        glp.langevin.ULA(0.1), wide, torch.zeros(40, 2048), 2, generator=seeded(), processes=p
    ).draws
    chain = glp.sample(law, 20, 5, n_warmup=60, generator=seeded(), processes=p)
    found["tuned"] = chain.draws
    x = chain.draws.flatten(0, 1)
    table = glp.check.compare(x, x.flip(0) + 0.3, x, generator=seeded(), processes=p).rows
    found["rows"] = torch.tensor([float(r.value) for r in table], dtype=torch.float64)
    return found


def wrong():
    def log_prob(x):
        if dist.get_rank() == 1 and len(x) < 8:
            raise TypeError("no law")
        return -x.square().sum(1) / 2

    try:
        glp.run(
            glp.langevin.MALA(0.1),
            glp.as_target(log_prob=log_prob, event_shape=(1,)),
            torch.zeros(8, 1),
            3,
            processes=Processes.here(),
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    dist.init_process_group("gloo")
    torch.save((shared(), wrong()), os.environ["OUT"] + os.environ["RANK"])
