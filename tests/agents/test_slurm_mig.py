"""Jobs on MIG instances, told by the node: of which GPUs, how much, and when it cannot be told."""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from agents.pod_devices import Claim, Instance, Node
from agents.sampler import Snapshot
from agents.slurm_files import INSTANCES_EVERY_MS, JobFiles
from agents.slurm_look import OTHERWISE, About, Seen, look, placed
from agents.source import Reading
from pipeline.clock import ManualClock
from pipeline.errors import Unavailable
from pipeline.records import Allocation, Gpu, Inventory
from tests.agents.test_slurm_files import about, quiet, script

NOW = 1_795_280_000_000
H100 = "NVIDIA H100 80GB HBM3"
GPUS = {f"GPU-{index}": Gpu(index, f"GPU-{index}", H100) for index in range(3)}
INSTANCES = {
    "MIG-a": Instance("GPU-0", "1g.10gb"), "MIG-b": Instance("GPU-0", "2g.20gb"),
    "MIG-c": Instance("GPU-1", "1g.10gb"), "MIG-d": Instance("GPU-1", "3g.40gb"),
}  # fmt: skip
NODE = Node("", GPUS, INSTANCES)
SEVENTH = 1_000_000 // 7


def on(*uuids: str) -> About:
    return About("teama", "", NOW, uuids)


def parts(about: About, node: Node = NODE) -> list[tuple[tuple[int, ...], int]]:
    seen = placed(Seen({}, {"7": about}), node, is_cut=True)
    assert not seen.unplaced
    return [(part.gpus, part.share_ppm) for part in seen.parts["7"]]


# -- what a job holds ----------------------------------------------------------------------------


def test_an_instance_is_as_many_slices_of_its_gpu_as_its_profile_says() -> None:
    assert parts(on("MIG-a")) == [((0,), SEVENTH)]
    assert parts(on("MIG-d")) == [((1,), 3_000_000 // 7)]


def test_instances_of_one_gpu_are_one_part_and_equal_parts_one_claim() -> None:
    assert parts(on("MIG-a", "MIG-b")) == [((0,), SEVENTH + 2_000_000 // 7)]
    assert parts(on("MIG-a", "MIG-c")) == [((0, 1), SEVENTH)]
    assert parts(on("MIG-b", "MIG-c")) == [((1,), SEVENTH), ((0,), 2_000_000 // 7)]


def test_a_model_of_unknown_slices_is_an_equal_part() -> None:
    gpus = {"GPU-0": Gpu(0, "GPU-0", "NVIDIA Z9000")}
    assert parts(on("MIG-a"), Node("", gpus, INSTANCES)) == [((0,), 0)]


def test_a_job_of_which_one_instance_is_unknown_is_not_told_of_at_all() -> None:
    """A part of what it holds would be as wrong as none."""
    seen = placed(Seen({}, {"7": on("MIG-a", "MIG-x"), "8": on("MIG-c")}), NODE, is_cut=True)
    assert set(seen.unplaced) == {"7"}
    assert "did not name" in seen.unplaced["7"]
    assert set(seen.parts) == {"8"}


def test_a_whole_gpu_on_a_node_with_instances_has_no_index_to_be_believed() -> None:
    """As seen with 22.05: with GPU 0 cut in two, the second h100, /dev/nvidia2, had index 1."""
    seen = Seen({"7": (1,), "9": (2,)}, {"7": About(), "9": About()}, frozenset({"7"}))
    assert placed(seen, NODE, is_cut=True).unplaced == {"7": OTHERWISE}
    assert placed(seen, NODE, is_cut=False).unplaced == {}


# -- the files -----------------------------------------------------------------------------------


def test_prolog_and_epilog_keep_a_job_on_instances(tmp_path: Path) -> None:
    env = {
        "SLURM_JOB_GPUS": "2,3", "SLURM_JOB_ACCOUNT": "TeamA",
        "CUDA_VISIBLE_DEVICES": "MIG-5c89,MIG-GPU-77/1/0",
    }  # fmt: skip
    assert quiet(script("prolog.sh", tmp_path, **env))
    seen = look(tmp_path)
    assert seen.gpus == {}, "Slurm's indices are none of a GPU"
    assert seen.about["7"][:2] == ("TeamA", "")
    assert seen.about["7"].mig == ("MIG-5c89", "MIG-GPU-77/1/0")
    assert quiet(script("epilog.sh", tmp_path))
    assert look(tmp_path) == Seen({}, {})


def test_an_account_cannot_pretend_to_instances(tmp_path: Path) -> None:
    env = {"SLURM_JOB_GPUS": "2", "SLURM_JOB_ACCOUNT": "a\nmig=MIG-a"}
    assert quiet(script("prolog.sh", tmp_path, **env))
    assert look(tmp_path).about["7"].mig == ()
    assert look(tmp_path).gpus == {"7": (2,)}


def test_a_job_file_alone_is_no_job(tmp_path: Path) -> None:
    """A prolog that died between its files; one that wrote junk."""
    (tmp_path / "job.7").write_text("account=a\nmig=\n")
    (tmp_path / "job.8").write_text("mig=$(x)\n")
    (tmp_path / "job.x").write_text("mig=MIG-a\n")
    assert look(tmp_path) == Seen({}, {})


# -- the thread ----------------------------------------------------------------------------------


class Still(ManualClock):
    """Its waits end with the event only, so that the test alone looks."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        return event.wait(30)


class Driver:
    """Names what instances there are, if it answers."""

    def __init__(self) -> None:
        self.instances: dict[str, Instance] | None = dict(INSTANCES)
        self.asked = 0

    def __call__(self) -> Mapping[str, Instance]:
        self.asked += 1
        if self.instances is None:
            raise Unavailable("nvidia-smi hangs")
        return dict(self.instances)


class Cut:
    """A node with MIG instances, whose agent can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.jobs, self.state, self.capabilities = (folder / n for n in ("jobs", "state", "caps"))
        self.jobs.mkdir()
        (self.capabilities / "gpu0/mig/gi1").mkdir(parents=True)
        self.driver, self.clock = Driver(), Still(NOW)
        self.start()

    def start(self, *, knows_gpus: bool = True) -> None:
        self.files = JobFiles(
            "lab", "n1", self.jobs, self.state, self.clock, self.driver, self.capabilities
        )
        deadline_s = time.monotonic() + 10
        while not self.files.looks and time.monotonic() < deadline_s:
            time.sleep(0.001)
        if knows_gpus:
            self.learn()

    def learn(self) -> None:
        node = Inventory(site="lab", node="n1", from_ms=NOW, gpus=tuple(GPUS.values()))
        self.files.on_reading(Snapshot(NOW, (node,), Reading((), (), ())))

    def look(self, seconds: float = 2) -> list[Allocation]:
        self.clock.advance(seconds)
        self.files.look()
        return self.files.read(self.clock.ms)

    def begin(self, job: str, uuids: str) -> None:
        about(self.jobs, job, self.clock.ms, f"account=TeamA\nmig={uuids}\n")


@pytest.fixture
def cut(tmp_path: Path) -> Iterator[Cut]:
    made = Cut(tmp_path)
    yield made
    made.files.close()


def test_a_job_on_instances_begins_and_ends(cut: Cut) -> None:
    cut.begin("7", "MIG-a,MIG-b")
    (begun,) = cut.look()
    assert (begun.tenant, begun.account, begun.workload, begun.source) == (
        "teama", "TeamA", "7", "slurm-node",
    )  # fmt: skip
    assert (begun.gpus, begun.share_ppm) == ((0,), SEVENTH + 2_000_000 // 7)
    assert begun.from_ms == NOW, "when the prolog ran"
    assert cut.look() == []
    (cut.jobs / "job.7").unlink()
    (ended,) = cut.look()
    assert (ended.share_ppm, ended.until_ms) == (begun.share_ppm, NOW + 6000)
    assert cut.driver.asked == 1


def test_a_driver_that_does_not_answer_ends_nothing_and_is_said_once(
    cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    cut.begin("7", "MIG-a")
    assert len(cut.look()) == 1
    cut.look()
    cut.files.close()
    cut.driver.instances = None
    cut.start(knows_gpus=False)
    assert cut.look() == [], "restarted: neither GPUs nor instances are known"
    assert not caplog.records, "what the sampler has yet to tell is no trouble"
    cut.learn()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert cut.look() == []
    assert len(caplog.records) == 1
    assert "job 7 is not told of: the driver did not name" in caplog.text
    assert cut.files.errors["MIG instances: nvidia-smi hangs"] == 1
    cut.driver.instances = dict(INSTANCES)
    assert cut.look(INSTANCES_EVERY_MS / 1000) == [], "it was asserted before"
    (cut.jobs / "job.7").unlink()
    assert [claim.until_ms for claim in cut.look()] == [cut.clock.ms]


def test_instances_that_were_made_since_are_asked_for(cut: Cut) -> None:
    cut.begin("7", "MIG-a")
    assert len(cut.look()) == 1
    assert cut.driver.instances is not None
    cut.driver.instances["MIG-new"] = Instance("GPU-2", "7g.80gb")
    cut.begin("8", "MIG-new")
    assert cut.look() == []
    (begun,) = cut.look(INSTANCES_EVERY_MS / 1000)
    assert (begun.workload, begun.gpus, begun.share_ppm) == ("8", (2,), 1_000_000)
    assert cut.driver.asked == 2


def test_a_whole_gpu_is_not_told_of_where_there_are_instances(
    cut: Cut, caplog: pytest.LogCaptureFixture
) -> None:
    (cut.jobs / "1").write_text("7\n")
    (cut.jobs / "2.5").write_text("9\n")
    found = cut.look()
    assert [(c.workload, c.gpus, c.share_ppm) for c in found] == [("9", (2,), 0)]
    assert caplog.text.count("job 7 is not told of: Slurm counts") == 1
    (cut.capabilities / "gpu0/mig/gi1").rmdir()
    assert [(c.workload, c.gpus) for c in cut.look()] == [("7", (1,))]
    assert cut.driver.asked == 0, "nobody needed it"


def test_a_node_without_instances_asks_nobody(cut: Cut) -> None:
    (cut.capabilities / "gpu0/mig/gi1").rmdir()
    (cut.jobs / "0").write_text("7\n")
    (begun,) = cut.look()
    assert (begun.gpus, begun.share_ppm) == ((0,), 0)
    assert cut.driver.asked == 0


def test_a_claim_names_who_holds_what() -> None:
    """What is taken over from the pods' devices: one name for the holder, none for the rest."""
    seen = placed(Seen({}, {"7": on("MIG-a")}), NODE, is_cut=True)
    assert seen.parts == {"7": (Claim("", "7", (0,), SEVENTH),)}
