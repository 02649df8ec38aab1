"""The NVML source over the real ctypes path, against a fake driver in every mood."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agents import nvml_link
from agents.nvml_source import NvmlSource
from agents.source import Source
from deploy import fake_nvml
from pipeline.catalog import FAST_BY_NAME, SLOW_BY_NAME
from pipeline.errors import Unavailable
from pipeline.records import ENERGY_COUNTER, ENERGY_TRAPEZOID
from tests.agents.nvml_node import DEADLINE_S, PERIOD_MS, Node, Options

Start = Callable[..., Node]


def null(name: str) -> int:
    return (FAST_BY_NAME.get(name) or SLOW_BY_NAME[name]).null_code


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fake_nvml.build(tmp_path_factory.mktemp("driver"))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def old_driver(driver: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_nvml.build(tmp_path_factory.mktemp("old_driver"), old_driver=True)


@pytest.fixture
def start(tmp_path: Path, driver: Path) -> Iterator[Start]:
    nodes: list[Node] = []

    def begin(library: Path = driver, options: Options | None = None, **settings: object) -> Node:
        nodes.append(Node(tmp_path, library, options or Options(), **settings))
        return nodes[-1]

    yield begin
    for node in nodes:
        node.steer(hang=None, deaf=None)
        node.source.close()
        node.source.close()  # closing twice is closing once


def test_eight_gpus_report_every_metric_that_such_a_gpu_has(start: Start) -> None:
    node = start(gpus=8)
    node.read()
    columns = node.read_until(lambda c: c.slow["mem_total_mib"][7] == 81559)
    absent = {"module_power_w"}  # no Grace beside it
    for name, values in columns.fast.items():
        reported = name in ("dt_ms", "flags", "energy_kind") or null(name) not in values
        assert reported is (name not in absent), name
    absent = {"fan_pct", "retired_pages_sbe", "retired_pages_dbe", "retired_pages_pending"}
    for name, values in columns.slow.items():
        assert (null(name) not in values) is (name not in absent), name
    assert columns.fast["dt_ms"] == [PERIOD_MS] * 8
    assert columns.fast["energy_kind"] == [ENERGY_COUNTER] * 8
    assert columns.fast["temp_gpu_c"] == list(range(50, 58))
    assert columns.fast["sm_active_pct"] == [200 + gpu for gpu in range(8)]  # 20.0 % and more
    assert columns.slow["power_limit_requested_w"] == [6500] * 8
    assert columns.slow["nvlink_crc_errors"] == [9] * 8  # 4 flit and 5 data errors
    assert all(3000 <= watts <= 5080 for watts in columns.fast["power_w"])


def test_the_inventory_says_who_is_there(start: Start) -> None:
    (inventory,) = start(gpus=3).source.inventory()
    assert (inventory.site, inventory.node, inventory.hall) == ("here", "node1", "h1")
    assert inventory.driver_version == "590.48.01"
    assert [gpu.index for gpu in inventory.gpus] == [0, 1, 2]
    gpu = inventory.gpus[2]
    assert gpu.uuid == "GPU-0000fa50-feed-4a11-beef-000000000002"
    assert (gpu.model, gpu.memory_mib) == ("NVIDIA H100 80GB HBM3", 81559)
    assert gpu.pci_bus_id == "00000000:12:00.0"
    assert gpu.serial
    assert gpu.vbios


def test_energy_deltas_add_up_to_the_counter_and_the_first_is_unknown(start: Start) -> None:
    node = start()
    first = node.read()
    assert first.fast["energy_j"] == [null("energy_j")] * 2
    rows = [node.read() for _ in range(10)]
    for gpu in range(2):
        counted = rows[-1].slow["energy_counter_j"][gpu] - first.slow["energy_counter_j"][gpu]
        assert sum(row.fast["energy_j"][gpu] for row in rows) == counted > 0


def test_slow_reading_goes_in_turns_and_never_twice_for_a_gpu_in_a_round(start: Start) -> None:
    node = start(gpus=4)
    asked = []
    for _ in range(9):
        node.read()
        cost = node.source.costs().get("nvmlDeviceGetMigMode")
        asked.append(cost.calls if cost else 0)
    # Costs are told after each round of two ticks: 4 GPUs at opening, then 4 a round.
    assert sorted(set(asked))[:4] == [0, 8, 12, 16]
    assert asked.index(16) - asked.index(12) in (1, 2, 3)


def test_costs_are_counted_by_call(start: Start) -> None:
    node = start(latency_us=200)
    for _ in range(5):
        node.read()
    cost = node.source.costs()["nvmlDeviceGetFieldValues"]
    assert cost.calls >= 6
    assert cost.longest_s >= cost.seconds / cost.calls >= 0.0002


def test_the_call_that_blocks_for_20_ms_is_never_made(start: Start) -> None:
    node = start()
    for _ in range(5):
        node.read()
    assert "nvmlDeviceGetPcieThroughput" not in node.source.costs()


def test_mig_instances_are_slices_and_their_gpu_has_power_but_no_utilisation(start: Start) -> None:
    node = start(mig="1", instances="1:2:0,1:5:0,1:5:1")
    node.read()
    columns = node.read()
    assert columns.instances == ((1, 2, 0), (1, 5, 0), (1, 5, 1))
    assert columns.slices["mem_used_mib"] == [1002, 1005, 1005]
    assert columns.slices["sm_active_pct"] == [221, 251, 251]
    assert columns.fast["util_gpu_pct"] == [90, null("util_gpu_pct")]
    assert columns.slow["util_encoder_pct"] == [7, null("util_encoder_pct")]
    assert null("power_w") not in columns.fast["power_w"]
    assert columns.slow["mig_mode"] == [0, 1]


def test_instances_that_come_and_go_are_a_new_generation(start: Start) -> None:
    node = start(mig="0", instances="0:1:0")
    node.read()
    before = node.source.generation
    node.steer(instances="0:1:0,0:2:0")
    columns = node.read_until(lambda c: len(c.instances) == 2)
    assert len(columns.slices["mem_used_mib"]) == 2
    assert node.source.generation > before
    node.steer(instances=None)
    columns = node.read_until(lambda c: not c.instances)
    assert columns.slices["mem_used_mib"] == []


def test_what_a_gpu_does_not_support_is_null_and_asked_once(start: Start) -> None:
    node = start(unsupported="82,186,197,nvmlDeviceGetMarginTemperature,nvmlGpmQueryDeviceSupport")
    for _ in range(6):
        columns = node.read()
    for name in ("temp_mem_c", "power_instant_w", "pcie_tx_mib", "temp_margin_c", "sm_active_pct"):
        assert columns.fast[name] == [null(name)] * 2
    for name in ("power_w", "pcie_rx_mib", "temp_gpu_c"):
        assert null(name) not in columns.fast[name]
    costs = node.source.costs()
    assert costs["nvmlDeviceGetMarginTemperature"].calls == 2
    assert costs["nvmlGpmQueryDeviceSupport"].calls == 2
    assert "nvmlGpmSampleGet" not in costs


def test_power_falls_back_to_the_older_call(start: Start) -> None:
    columns = start(unsupported="185").read()
    assert all(3000 <= watts <= 5020 for watts in columns.fast["power_w"])


def test_energy_is_integrated_where_there_is_no_counter(start: Start) -> None:
    node = start(unsupported="83,nvmlDeviceGetTotalEnergyConsumption")
    before, after = node.read(), node.read()
    assert after.fast["energy_kind"] == [ENERGY_TRAPEZOID] * 2
    assert before.fast["energy_j"] == [null("energy_j")] * 2
    for gpu in range(2):
        area = (before.fast["power_w"][gpu] + after.fast["power_w"][gpu]) * PERIOD_MS // 20
        assert after.fast["energy_j"][gpu] == area
    assert after.slow["energy_counter_j"] == [null("energy_counter_j")] * 2


def test_a_passing_error_is_null_for_that_tick_only(start: Start) -> None:
    node = start(unknown="nvmlDeviceGetUtilizationRates")
    assert node.read().fast["util_gpu_pct"] == [null("util_gpu_pct")] * 2
    node.steer(unknown=None)
    assert node.read().fast["util_gpu_pct"] == [90, 91]


@pytest.mark.parametrize("how", ["lost", "reset_required"])
def test_a_lost_gpu_has_no_row_and_one_event_and_the_others_go_on(start: Start, how: str) -> None:
    node = start()
    node.read()
    node.steer(**{how: 1})
    for _ in range(3):
        columns = node.read()
        assert columns.fast["dt_ms"] == [PERIOD_MS, 0]
        assert columns.fast["power_w"][1] == null("power_w")
        assert columns.slow["mem_total_mib"][1] == null("mem_total_mib")
    (event,) = node.events("gpu_lost")
    assert event.uuid == node.source.inventory()[0].gpus[1].uuid
    assert (event.site, event.node) == ("here", "node1")


def test_a_gpu_that_is_lost_before_the_start_is_told(start: Start) -> None:
    node = start(lost=0)
    assert [gpu.index for gpu in node.source.inventory()[0].gpus] == [1]
    (event,) = node.events("gpu_lost")
    assert "'0': 15" in event.detail


def test_a_gpu_that_is_gone_after_the_childs_restart_stays_in_the_inventory(start: Start) -> None:
    node = start()
    node.read()
    node.steer(lost=0)
    os.kill(node.pid, signal.SIGKILL)  # the fake can bear it
    columns = node.read_until(lambda c: c.fast["dt_ms"][0] > 0)
    assert columns.fast["dt_ms"][1] == 0
    gpus = node.source.inventory()[0].gpus
    assert [gpu.index for gpu in gpus] == [1, 0]
    (event,) = node.events("gpu_lost")
    assert event.uuid == gpus[1].uuid


def test_an_xid_is_an_event_of_its_gpu(start: Start) -> None:
    node = start()
    node.read()
    node.steer(xid="1/79/1")
    node.read_until(lambda _: node.events("xid"))
    (event,) = node.events("xid")
    assert (event.code, event.uuid) == (79, node.source.inventory()[0].gpus[1].uuid)
    assert event.ts_ms <= node.clock.now_ms()


def test_an_xid_of_nvml_and_of_the_kernel_log_is_told_once_and_another_one_too(
    start: Start,
) -> None:
    node = start()
    node.read()
    with node.kmsg.open("a") as file:
        file.write("3,1,1,-;NVRM: Xid (PCI:0000:11:00): 79, GPU has fallen off the bus.\n")
        file.write("3,2,2,-;NVRM: Xid (PCI:0000:77:00): 48, of a GPU that is not ours\n")
        file.write("3,3,3,-;nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal\n")
    node.steer(xid="1/79/1")
    time.sleep(0.1)
    for _ in range(3):
        node.read()
        told = node.events("xid")
    assert sorted(event.code for event in told) == [48, 79]
    foreign = next(event for event in told if event.code == 48)
    assert foreign.uuid == ""
    assert "0000:77:00" in foreign.detail
    assert [event.code for event in node.events("sxid")] == [20034]


def test_a_gpu_that_the_kernel_log_calls_lost_is_lost_once(start: Start) -> None:
    node = start()
    with node.kmsg.open("a") as file:
        file.write("3,1,1,-;NVRM: GPU 0000:10:00.0: GPU has fallen off the bus.\n")
    assert len(node.events("gpu_lost")) == 1
    node.steer(lost=0)
    node.read()
    assert len(node.events("gpu_lost")) == 1


def test_no_kernel_log_is_said_once_and_harms_nothing(start: Start, tmp_path: Path) -> None:
    node = start(options=Options(kmsg=tmp_path / "none"))
    for _ in range(3):
        node.read()
    (event,) = node.events("kernel_log_unavailable")
    assert "CAP_SYSLOG" in event.detail


def test_a_counter_that_begins_anew_is_an_epoch_and_never_a_lump(start: Start) -> None:
    node = start()
    node.read()
    before = node.read()
    epoch, generation = node.source.driver_epoch, node.source.generation
    node.steer(loaded_ms=time.monotonic_ns() // 1_000_000 - 50)
    after = node.read()
    assert after.fast["energy_j"] == [null("energy_j")] * 2
    assert after.slow["energy_counter_j"][0] < before.slow["energy_counter_j"][0]
    assert node.source.driver_epoch != epoch
    assert node.source.generation == generation + 1
    assert len(node.events("driver_reloaded")) == 1
    assert node.source.boot_epoch == node.source.boot_epoch
    assert null("energy_j") not in node.read().fast["energy_j"]


def test_a_missed_tick_is_in_the_next_delta_and_two_are_not(start: Start) -> None:
    node = start()
    node.read()
    node.clock.advance(PERIOD_MS / 1000)
    columns = node.read()
    assert columns.fast["dt_ms"] == [2 * PERIOD_MS] * 2
    assert null("energy_j") not in columns.fast["energy_j"]
    node.clock.advance(2 * PERIOD_MS / 1000)
    columns = node.read()
    assert columns.fast["dt_ms"] == [2 * PERIOD_MS] * 2
    assert columns.fast["energy_j"] == [null("energy_j")] * 2


def test_a_hung_call_delays_nobody_and_the_child_is_used_again_when_it_answers(
    start: Start,
) -> None:
    node = start()
    node.read()
    pid = node.pid
    node.steer(hang="nvmlDeviceGetFieldValues")
    began_s = time.monotonic()
    assert "hung" in node.problem()
    assert "hung for" in node.problem()
    assert "hung for 2 s" in node.problem()
    assert time.monotonic() - began_s < 3 * (DEADLINE_S + 0.3)
    node.steer(hang=None)
    columns = node.read_until(lambda _: True)
    assert node.pid == pid
    assert columns.fast["dt_ms"] == [2 * PERIOD_MS] * 2
    assert columns.fast["energy_j"] == [null("energy_j")] * 2
    assert len(node.events("driver_hung")) == 1
    assert len(node.events("driver_back")) == 1
    assert node.source.problem == ""


def test_events_are_heard_while_the_driver_hangs(start: Start) -> None:
    node = start()
    node.read()
    node.steer(hang="nvmlDeviceGetFieldValues")
    node.problem()
    node.steer(xid="1/119/0")
    time.sleep(0.1)
    node.problem()
    assert [event.code for event in node.events("xid")] == [119]


def test_a_child_that_hangs_for_long_is_ended_by_sigterm_and_replaced(start: Start) -> None:
    node = start(options=Options(stop_hung_after_s=30.0))
    node.read()
    pid = node.pid
    node.steer(hang="nvmlDeviceGetClockInfo")
    node.problem()
    node.clock.advance(40)
    assert "asked to end" in node.problem()
    node.steer(hang=None)
    node.read_until(lambda _: True)
    assert node.pid != pid
    assert len(node.events("driver_lost")) == 1
    assert len(node.events("driver_back")) == 1


def test_a_child_that_cannot_be_ended_is_left_alone_and_never_doubled(start: Start) -> None:
    node = start(options=Options(stop_hung_after_s=1.0))
    node.read()
    pid = node.pid
    node.steer(hang="nvmlDeviceGetClockInfo", deaf=1)
    node.problem()
    node.clock.advance(40)
    node.problem()
    for _ in range(3):
        assert f"child {pid} was asked to end and does not" in node.problem()
    assert node.pid == pid
    assert len(node.events("child_stuck")) == 1
    node.steer(hang=None, deaf=None)
    node.read_until(lambda _: True)
    assert node.pid == pid
    assert len(node.events("driver_back")) == 1


def test_a_driver_that_opens_slowly_is_waited_for_without_an_alarm(start: Start) -> None:
    node = start(options=Options(open_wait_s=0.2), hang="nvmlDeviceGetHandleByIndex_v2")
    assert node.source.inventory()[0].gpus == ()
    generation = node.source.generation
    assert "opening the GPUs" in node.problem()
    assert node.events("driver_hung") == []
    node.steer(hang=None)
    node.read_until(lambda c: c.fast["dt_ms"] == [PERIOD_MS] * 2)
    assert node.source.generation > generation
    assert len(node.source.inventory()[0].gpus) == 2


def test_an_old_driver_without_newer_symbols_gives_what_it_has(
    start: Start, old_driver: Path
) -> None:
    node = start(library=old_driver, driver="470.82.01")
    node.read()
    columns = node.read()
    assert node.source.inventory()[0].driver_version == "470.82.01"
    for name in ("power_w", "energy_j", "temp_gpu_c", "mem_used_mib", "throttle_reasons"):
        assert null(name) not in columns.fast[name], name
    for name in ("power_instant_w", "temp_margin_c", "sm_active_pct", "pcie_tx_mib"):
        assert columns.fast[name] == [null(name)] * 2, name
    assert columns.slow["power_limit_w"] == [7000] * 2
    assert columns.slow["mem_reserved_mib"] == [null("mem_reserved_mib")] * 2
    assert columns.slow["recovery_action"] == [null("recovery_action")] * 2


def test_a_killed_child_is_replaced_and_its_restart_makes_no_delta(start: Start) -> None:
    node = start()
    node.read()
    node.read()
    pid, epoch = node.pid, node.source.driver_epoch
    os.kill(pid, signal.SIGKILL)
    assert "killed by signal 9" in node.problem()
    columns = node.read_until(lambda _: True)
    assert node.pid != pid
    assert columns.fast["energy_j"] == [null("energy_j")] * 2
    assert node.source.driver_epoch == epoch
    assert len(node.events("driver_lost")) == len(node.events("driver_back")) == 1


def test_children_that_die_at_once_come_ever_more_slowly(start: Start) -> None:
    node = start(init=999)
    lives = set()
    for _ in range(40):
        node.problem()
        lives.add(node.source._link._start_at_s)
    assert len(lives) <= 6  # after 1, 2, 4, 8, 16 s
    assert len(node.events("driver_lost")) == 1


def test_a_library_of_another_version_is_loaded_by_a_new_child(start: Start) -> None:
    node = start()
    node.read()
    pid, epoch = node.pid, node.source.driver_epoch
    node.steer(fail=18)
    assert "different versions" in node.problem()
    node.steer(fail=None)
    columns = node.read_until(lambda _: True)
    assert node.pid != pid
    assert columns.fast["energy_j"] == [null("energy_j")] * 2
    assert node.source.driver_epoch != epoch
    assert len(node.events("driver_reloaded")) == 1


def test_a_missing_driver_is_one_clear_sentence(start: Start, tmp_path: Path) -> None:
    empty = tmp_path / "no_driver"
    empty.mkdir()
    (empty / fake_nvml.SONAME).touch()  # hides any real library
    node = start(library=empty)
    assert node.problem() == (
        "NVML: libnvidia-ml.so.1 was not found: install the NVIDIA driver, or choose another "
        "source (simulator, replay or dcgm)"
    )
    assert node.source.problem == node.problem()
    assert len(node.events("driver_lost")) == 1
    assert node.source.inventory()[0].gpus == ()


def test_a_driver_that_is_not_loaded_says_so_until_it_is(start: Start) -> None:
    node = start(init=9)
    assert "driver is not loaded" in node.problem()
    node.steer(init=None)
    node.read_until(lambda c: c.fast["dt_ms"] == [PERIOD_MS] * 2)


def test_a_released_driver_is_in_nobodys_use_and_can_be_resumed(start: Start) -> None:
    node = start()
    node.read()
    pid = node.pid
    node.source.release()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert "released" in node.problem()
    assert len(node.events("driver_released")) == 1
    node.steer(driver="600.10.01")
    epoch = node.source.driver_epoch
    node.source.resume()
    node.read_until(lambda _: True)  # a child that starts on a busy machine takes its time
    assert node.source.inventory()[0].driver_version == "600.10.01"
    assert node.source.driver_epoch != epoch


def test_a_driver_that_is_hung_cannot_be_released(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml_link, "LEAVE_S", 0.2)
    node = start()
    node.read()
    node.steer(hang="nvmlDeviceGetFieldValues", deaf=1)
    node.problem()
    with pytest.raises(Unavailable, match="stays in use"):
        node.source.release()
    node.source.resume()
    assert "no second one is started" in node.problem()


def test_the_child_ends_when_the_agent_is_gone(start: Start) -> None:
    node = start()
    node.read()
    process = node.source._link._process
    assert process is not None
    process.hang_up()
    assert process.has_ended(wait_s=5.0)
    assert process.exit_code == 0


def test_the_agent_itself_never_loads_nvml() -> None:
    code = "import sys, agents.nvml_source; sys.exit('pynvml' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_source_is_a_source(start: Start) -> None:
    source: Source = start().source
    assert isinstance(source, NvmlSource)
    assert source.name == "nvml"
