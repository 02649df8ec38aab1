"""A real Slurm 22.05 with shards, with MPS, with MIG instances: what it says, and what is made of it.

MIG instances are pretended by a file that Slurm's own tests use in place of NVML: which GPU an
instance is of, its device files and its UUID.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents.pod_devices import Instance, Node
from agents.slurm_look import look, placed
from deploy.slurm_cluster import GPUS, SlurmCluster
from pipeline.records import Gpu
from pipeline.settings import Slurm
from pipeline.slurm import Job, read_squeue
from pipeline.slurm_run import Commands
from tests.real.conftest import require_real
from tests.real.test_slurm import Witness, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

SHARDS = ("gpu,shard", "gpu:h100:4,shard:16", "Name=shard Count=16\n")
MPS = ("gpu,mps", "gpu:h100:4,mps:400", "Name=mps Count=400\n")
ONE_CUT = ("gpu,shard", "gpu:h100:4,shard:8", "Name=shard Count=8 File={0[1]}\n")
MIG = ("gpu", "gpu:h100:2,gpu:h100_1g.10gb:2", "")
UUIDS = tuple(f"MIG-{n * 8}-1111-5111-8111-111111111111" for n in "12")


class Parted(SlurmCluster):
    """A cluster whose GPUs are parted."""

    parting = SHARDS

    def _configure(self) -> None:
        super()._configure()
        types, gres, more = self.parting
        conf = self.folder / "slurm.conf"
        text = conf.read_text().replace("GresTypes=gpu\n", f"GresTypes={types}\n")
        conf.write_text(text.replace(f"Gres=gpu:h100:{GPUS}", f"Gres={gres}"))
        mine = self.folder / "dev"
        found = [mine / f"nvidia{index}" for index in range(GPUS)]
        files = found if all(f.exists() for f in found) else [f"/dev/tty{n}" for n in range(GPUS)]
        gres_conf = self.folder / "gres.conf"
        gres_conf.write_text(gres_conf.read_text() + more.format(files))
        if gres == MIG[1]:
            gres_conf.write_text("AutoDetect=nvml\n")
            (self.folder / "fake_gpus.conf").write_text(
                f"h100_1g.10gb|2|(null)|(null)|{files[0]},{files[3]}|{UUIDS[0]}|nvidia_gpu_env\n"
                f"h100_1g.10gb|2|(null)|(null)|{files[0]},{files[3]}|{UUIDS[1]}|nvidia_gpu_env\n"
                f"h100|2|(null)|-1,0|{files[1]}|(null)|nvidia_gpu_env\n"
                f"h100|2|(null)|0,-1|{files[2]}|(null)|nvidia_gpu_env\n"
            )


@pytest.fixture
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Parted]:
    class Kind(Parted):
        parting = request.param

    started = require_real("Slurm", lambda: Kind.start(tmp_path / "slurm"))
    yield started
    started.run("scancel", f"--user={os.getuid()}")
    started.stop()


def submit(cluster: Parted, gres: str, account: str) -> str:
    """Queue a job that sleeps, and wait until it runs; its id."""
    job = cluster.run(
        "sbatch", "--parsable", "--output=/dev/null", "--mem=1", f"--gres={gres}", "-A", account,
        "--wrap=exec sleep 120",
    ).strip()  # fmt: skip
    Witness(cluster).runs(job)
    return job


def told(cluster: Parted) -> dict[str, Job]:
    """What squeue says, which scontrol says too."""
    commands = Commands(Slurm(), os.environ | cluster.env)
    jobs = {job.name: job for job in read_squeue(commands.squeue()).jobs}
    for name, job in jobs.items():
        detailed = commands.job(name)
        assert detailed is not None
        (one,) = detailed.jobs
        assert (one.places, bool(one.unsure)) == (job.places, bool(job.unsure))
    return jobs


@pytest.mark.parametrize(
    ("cluster", "part"), [(SHARDS, "shard"), (MPS, "mps")], indirect=["cluster"]
)
def test_shards_and_mps_name_their_gpu_and_no_share(cluster: Parted, part: str) -> None:
    """Two jobs on one GPU, and one on a whole GPU beside it; the node says the same."""
    parted = [submit(cluster, f"{part}:{count}", "a") for count in (1, 3)]
    whole = submit(cluster, "gpu:1", "b")
    jobs = told(cluster)
    assert [jobs[job].places for job in parted] == [((cluster.host, (0,), 0),)] * 2
    assert jobs[whole].places == ((cluster.host, (1,), 0),)
    assert look(cluster.jobs).gpus == {parted[0]: (0,), parted[1]: (0,), whole: (1,)}


@pytest.mark.parametrize("cluster", [ONE_CUT], indirect=True)
def test_the_index_of_a_shard_is_its_gpus_where_only_some_are_shared(cluster: Parted) -> None:
    job = submit(cluster, "shard:2", "a")
    assert told(cluster)[job].places == ((cluster.host, (1,), 0),)
    assert look(cluster.jobs).gpus == {job: (1,)}


@pytest.mark.parametrize("cluster", [MIG], indirect=True)
def test_mig_instances_are_told_by_the_node_alone(cluster: Parted) -> None:
    """And an index beside them is another GPU's: the second whole one is the node's third."""
    instance = submit(cluster, "gpu:h100_1g.10gb:1", "mig")
    first, second = (submit(cluster, "gpu:h100:1", "whole") for _ in range(2))
    jobs = told(cluster)
    assert jobs[instance].places == ()
    assert "install deploy/slurm's prolog" in jobs[instance].unsure
    assert jobs[second].places == ((cluster.host, (1,), 0),), "which is /dev/nvidia2"
    until("its prolog wrote", lambda: {instance, first, second} == set(look(cluster.jobs).about))
    seen = look(cluster.jobs)
    assert seen.about[instance].mig == UUIDS[:1]
    assert seen.about[instance].account == "mig"
    gpus = {f"GPU-{n}": Gpu(n, f"GPU-{n}", "NVIDIA H100 80GB HBM3") for n in range(GPUS)}
    node = Node("", gpus, {uuid: Instance("GPU-0", "1g.10gb") for uuid in UUIDS})
    found = placed(seen, node, is_cut=True)
    assert [(p.gpus, p.share_ppm) for p in found.parts[instance]] == [((0,), 1_000_000 // 7)]
    assert set(found.unplaced) == {first, second}
