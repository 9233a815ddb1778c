import csv
import errno
import math
import os
import re
import runpy
import threading
from types import SimpleNamespace

import pytest
from fake_federator import clients_of, federator_of, figures, layout_of, metrics_of, state_of, update_of
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_END_INFO_TAG, SESSION_START_INFO_TAG
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter
from toys import toy_clients, toy_federator

from flt.algorithm.grouping.kmeans import KMeansGrouping
from flt.algorithm.recipe import Recipe
from flt.algorithm.rule.mean import Mean
from flt.callbacks import loggers
from flt.callbacks.clusters import Clusters
from flt.callbacks.loggers import Loggers, quiet_writers
from flt.callbacks.tensorboard import worst_ten
from flt.server.callback import FedCallback

pytestmark = pytest.mark.slow  # whole runs and fits


HYPERPARAMETERS = {"algo": "hafl", "local.lr": 0.005, "cohort.size": None}


def tensorboard(folder, **kwargs):
    return TensorBoardLogger(folder, "hafl", "version_0", **kwargs)


def events(folder):
    everything = {"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    accumulator = EventAccumulator(str(folder / "hafl" / "version_0"), size_guidance=everything)
    accumulator.Reload()
    return accumulator


def data_of(folder):
    """Tag of the tab HPARAMS -> what it holds, as TensorBoard reads it, or None."""
    read = events(folder)

    def data(tag):
        metadata = read.summary_metadata.get(tag)
        return metadata and HParamsPluginData.FromString(metadata.plugin_data.content)

    return data


def callback(*loggers, tasks=None, most=20):
    return Loggers(loggers, HYPERPARAMETERS, tasks or {}, most)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What TensorBoard reads after three rounds."""
    folder = tmp_path_factory.mktemp("tensorboard")
    federator_of([callback(tensorboard(folder))]).fit()
    return events(folder)


class TestTensorBoard:
    def test_scalars_are_the_figures_with_the_round_as_step(self, written):
        points = [(event.step, event.value) for event in written.Scalars("round/val_acc")]
        assert points == [(1, pytest.approx(0.51)), (2, pytest.approx(0.52)), (3, pytest.approx(0.53))]
        assert {"round/val_acc", "round/val_loss", "round.comm/bytes_up"} <= set(written.Tags()["scalars"])

    def test_groups_other_than_the_global_models_sort_after_it(self, written):
        kinds = written.Tags()
        groups = {tag.partition("/")[0] for kind in ("scalars", "images", "histograms") for tag in kinds[kind]}
        assert groups == {"round", "round.clients", "round.comm", "round.pictures", "round.time"}
        assert min(groups) == "round"

    def test_of_each_figure_of_clients_there_are_a_histogram_and_the_worst_and_nothing_else(self, written):
        names = {"val_acc", "val_loss", "fit_train_loss"}
        shown = {tag for tag in written.Tags()["scalars"] if "clients" in tag}
        assert shown == {f"round.clients/{name}_worst10" for name in names}
        worst = [event.value for event in written.Scalars("round.clients/val_acc_worst10")]
        assert worst == [pytest.approx(0.51), pytest.approx(0.52), pytest.approx(0.53)]  # client 0 is the worst of 12
        assert written.Scalars("round.clients/val_loss_worst10")[0].value == pytest.approx(0.49)

    @pytest.mark.slow
    def test_no_tag_names_a_client_so_their_number_adds_none(self, written, tmp_path):
        federator_of([callback(tensorboard(tmp_path))], rounds=1, clients=40).fit()
        assert {kind: tags for kind, tags in events(tmp_path).Tags().items() if kind != "run_metadata"} == {
            kind: tags for kind, tags in written.Tags().items() if kind != "run_metadata"
        }

    def test_each_client_figure_has_a_histogram_over_the_jobs_per_round(self, written):
        assert set(written.Tags()["histograms"]) == {
            "round.clients/val_acc",
            "round.clients/val_loss",
            "round.clients/fit_train_loss",
        }
        histograms = written.Histograms("round.clients/val_acc")
        assert [event.step for event in histograms] == [1, 2, 3]
        assert histograms[0].histogram_value.num == 12
        assert histograms[0].histogram_value.min == pytest.approx(0.51)
        assert histograms[0].histogram_value.max == pytest.approx(0.521)

    def test_worst_ten_clients_are_a_table_per_round(self, written):
        tables = written.Tensors("round.clients/worst_ten/text_summary")
        assert [event.step for event in tables] == [1, 2, 3]
        lines = tables[0].tensor_proto.string_val[0].decode().splitlines()
        assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {client}" for client in range(10)]

    def test_partition_is_pictured_once_and_pairs_each_round(self, written):
        assert set(written.Tags()["images"]) == {"round.pictures/partition", "round.pictures/components"}
        assert [event.step for event in written.Images("round.pictures/partition")] == [0]
        assert [event.step for event in written.Images("round.pictures/components")] == [1, 2, 3]
        image = written.Images("round.pictures/components")[0]
        assert image.encoded_image_string.startswith(b"\x89PNG")
        assert image.width > 300

    def test_hyperparameters_stand_beside_the_last_figures_and_algo_and_seed_come_first(self, tmp_path):
        run = federator_of([Loggers([tensorboard(tmp_path)], {"a": 1, "seed": 0, "algo": "hafl", "b": None}, {})])
        run.fit(until=1)  # the tab is there while the run lasts
        data = data_of(tmp_path)
        columns, start, end = (data(tag) for tag in (EXPERIMENT_TAG, SESSION_START_INFO_TAG, SESSION_END_INFO_TAG))
        infos = sorted(columns.experiment.hparam_infos, key=lambda info: (not info.differs, info.name))  # TensorBoard's
        assert [info.name for info in infos] == ["algo", "seed", "a", "b"]
        compared = [info.name.tag for info in columns.experiment.metric_infos]
        assert compared[:2] == ["round/val_acc", "round/val_loss"]
        assert compared[-2:] == ["round.comm/total_up", "round.comm/total_down"]
        assert dict(start.session_start_info.hparams)["algo"].string_value == "hafl"
        assert end is None
        run.callbacks[0].on_fit_end(run)
        assert data_of(tmp_path)(SESSION_END_INFO_TAG).session_end_info.status == Status.Value("STATUS_SUCCESS")

    def test_custom_layout_begins_with_the_global_model_and_its_charts_match_tags(self, written):
        content = written.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
        layout = Layout.FromString(content)
        titles = [category.title for category in layout.category]
        assert titles == ["Global model", "Clients", "Bytes", "Time"]
        assert [chart.title for chart in layout.category[0].chart] == ["val_acc", "val_loss"]
        patterns = [tag for category in layout.category for chart in category.chart for tag in chart.multiline.tag]
        tags = written.Tags()["scalars"]
        assert sorted(tag for pattern in patterns for tag in tags if re.match(pattern, tag)) == sorted(tags)

    def test_metrics_that_begin_later_have_a_chart_too(self, tmp_path):
        class Later(FedCallback):
            def on_log(self, federator, metrics):
                metrics |= {"ranks/changed": 0.5} if federator.round > 1 else {}

            def on_fit_end(self, federator):
                federator.history[-1] |= {"test/acc": 0.5}

        federator_of([Later(), callback(tensorboard(tmp_path))]).fit()
        content = events(tmp_path).Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
        charts = {
            category.title: [chart.title for chart in category.chart]
            for category in Layout.FromString(content).category
        }
        assert charts["Components"] == ["changed"]
        assert charts["Test"] == ["acc"]
        assert list(charts)[:2] == ["Global model", "Test"]
        assert "Clients" in charts

    def test_hyperparameters_are_in_a_file_from_the_start(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path))]).call("on_fit_start")
        text = (tmp_path / "hafl" / "version_0" / "hparams.yaml").read_text()
        assert "local.lr: 0.005" in text

    @pytest.mark.slow
    def test_groups_are_pictured_where_there_are_several(self, tmp_path):
        layout, specs = layout_of([4]), clients_of(3, tasks=("a", "b"))
        tasks = {(client, index): name for client in specs for index, name in enumerate("ab")}
        assignment = {job: 1 + "ab".index(task) for job, task in tasks.items()}
        state = state_of(layout, groups=3, assignment=assignment)
        loggers = callback(tensorboard(tmp_path), tasks=tasks)
        federator_of([loggers], layout=layout, state=state, clients_=specs).fit(until=1)
        assert [event.step for event in events(tmp_path).Images("round.pictures/groups")] == [1]

    @pytest.mark.slow
    def test_clusters_are_pictured_where_jobs_are_clustered(self, tmp_path):
        tasks = {(client, index): f"task{index}" for client in range(2) for index in range(2)}
        recipe = Recipe(Mean("uniform"), grouping=KMeansGrouping(2))
        watching = [Clusters(tasks), callback(tensorboard(tmp_path), tasks=tasks)]
        toy_federator(recipe, toy_clients(2, jobs=2), callbacks=watching).fit()
        read = events(tmp_path)
        kinds = {"partition", "groups", "task_map", "group_cosines", "clusters"}
        assert set(read.Tags()["images"]) == {f"round.pictures/{kind}" for kind in kinds}
        assert {"round.cluster/within", "round.cluster/between", "round.cluster/ratio", "round.cluster/rand"} <= set(
            read.Tags()["scalars"]
        )

    def test_a_long_run_makes_no_more_than_about_so_many_pictures(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path), most=2)], rounds=7, clients=2).fit()
        assert [event.step for event in events(tmp_path).Images("round.pictures/components")] == [4, 7]

    def test_pictures_can_be_turned_off(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path), most=0)], clients=2).fit()
        assert not events(tmp_path).Tags()["images"]

    def test_where_all_components_are_trained_and_none_is_more_important_there_is_no_map_of_them(self, tmp_path):
        layout = layout_of([4])
        state = state_of(layout)
        for scores in state.groups[0].scores.values():
            scores.zero_()
        federator_of([callback(tensorboard(tmp_path))], layout=layout, state=state, clients=2).fit()
        assert events(tmp_path).Tags()["images"] == ["round.pictures/partition"]

    def test_a_module_without_pairs_has_no_map_of_them(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path))], layout=layout_of([]), clients=2).fit()
        assert events(tmp_path).Tags()["images"] == ["round.pictures/partition"]

    def test_a_resumed_run_shows_each_round_once(self, tmp_path, monkeypatch):
        # files are read in the order of their names: of the same second and process, the 10th comes before the 9th
        monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
        federator_of([callback(tensorboard(tmp_path))], clients=2).fit(until=2)
        resumed = federator_of([], clients=2)
        resumed.fit(until=1)  # the run was killed in round 2, after it was logged and before its checkpoint
        resumed.callbacks = [callback(tensorboard(tmp_path, purge_step=2))]
        resumed.fit()
        read = events(tmp_path)
        assert [event.step for event in read.Scalars("round/val_acc")] == [1, 2, 3]
        assert [event.step for event in read.Images("round.pictures/components")] == [1, 2, 3]
        assert [event.step for event in read.Images("round.pictures/partition")] == [0]
        assert [event.step for event in read.Histograms("round.clients/val_acc")] == [1, 2, 3]

    def test_a_killed_run_has_all_of_its_rounds(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path), most=0)], clients=2).fit(until=2)  # nothing is closed
        assert [event.step for event in events(tmp_path).Scalars("round/val_acc")] == [1, 2]

    def test_a_figure_that_is_no_number_leaves_its_histogram_out_and_stops_nothing(self, tmp_path):
        bad = {"distributed/val_acc": math.nan, "distributed/val_loss": math.inf}
        federator_of([callback(tensorboard(tmp_path), most=0)], measure=lambda job, round: bad, clients=2).fit()
        assert not events(tmp_path).Tags()["histograms"]

    def test_an_empty_cohort_is_logged_as_well(self, tmp_path):
        federator_of([callback(tensorboard(tmp_path))], rounds=1, cohort=[], figures=lambda round: {}).fit()
        assert [event.step for event in events(tmp_path).Images("round.pictures/components")] == [1]

    def test_figures_left_after_the_last_round_are_logged_with_it(self, tmp_path):
        class Test(FedCallback):
            def on_fit_end(self, federator):
                federator.history[-1]["test/acc"] = 0.75

        federator_of([Test(), callback(tensorboard(tmp_path), most=0)], clients=2).fit()
        read = events(tmp_path)
        assert [(event.step, event.value) for event in read.Scalars("test/acc")] == [(3, 0.75)]
        assert [event.step for event in read.Scalars("round/val_acc")] == [1, 2, 3]


class TestFullDisk:
    @pytest.mark.parametrize("room", [0, 1, 5, 40])
    def test_a_full_disk_is_one_error_in_the_main_thread(self, room, tmp_path, monkeypatch, capsys):
        left, write = [None] * room, event_file_writer.RecordWriter.write

        def full(self, data):
            if not left:
                raise OSError(errno.ENOSPC, "No space left on device")
            left.pop()
            write(self, data)

        monkeypatch.setattr(event_file_writer.RecordWriter, "write", full)
        hooked = []
        monkeypatch.setattr(threading, "excepthook", hooked.append)
        with pytest.raises(OSError, match="No space left") as raised:
            federator_of([callback(tensorboard(tmp_path))]).fit()
        for thread in threading.enumerate():
            if isinstance(thread, event_file_writer._AsyncWriterThread) and thread.exception is not None:
                thread.join(10)
        assert raised.value.errno == errno.ENOSPC
        assert hooked == []
        assert capsys.readouterr().err == ""

    def hooked(self, error, work, monkeypatch):
        """What Python is told of the threads that end with an error while all writers fail."""

        def fails(self, data):
            raise OSError(error, os.strerror(error))

        found = []
        monkeypatch.setattr(event_file_writer.RecordWriter, "write", fails)
        monkeypatch.setattr(threading, "excepthook", lambda its: found.append(its.exc_value.errno))
        before = set(threading.enumerate())
        with pytest.raises(OSError, match=re.escape(os.strerror(error))):
            work()
        for thread in set(threading.enumerate()) - before:
            thread.join(10)
        return found

    def test_the_users_own_writer_still_tells_of_a_full_disk(self, tmp_path, monkeypatch):
        def work():
            writer = SummaryWriter(tmp_path / "own")
            while True:
                writer.add_scalar("figure", 1.0)

        federator_of([callback(tensorboard(tmp_path))]).fit()
        assert self.hooked(errno.ENOSPC, work, monkeypatch) == [errno.ENOSPC]

    def test_another_error_of_a_writer_is_told(self, tmp_path, monkeypatch):
        federator = federator_of([callback(tensorboard(tmp_path))])
        assert self.hooked(errno.EIO, federator.fit, monkeypatch) == [errno.EIO]

    def test_a_run_with_the_same_logger_as_an_earlier_one_tells_nothing_either(self, tmp_path, monkeypatch):
        logger = tensorboard(tmp_path)
        federator_of([callback(logger)], rounds=1).fit()
        federator = federator_of([callback(logger)])
        assert self.hooked(errno.ENOSPC, federator.fit, monkeypatch) == []

    def test_nothing_breaks_if_tensorboard_has_no_such_thread_any_more(self, tmp_path, monkeypatch):
        known = event_file_writer._AsyncWriterThread
        with monkeypatch.context() as without:
            without.delattr(event_file_writer, "_AsyncWriterThread")
            runpy.run_path(loggers.__file__)
            with quiet_writers():
                assert not hasattr(event_file_writer, "_AsyncWriterThread")
        assert event_file_writer._AsyncWriterThread is known

    def test_an_interrupted_run_on_a_full_disk_is_still_an_interrupted_one(self, tmp_path, monkeypatch):
        class Interrupted(FedCallback):
            def on_round_start(self, federator):
                raise KeyboardInterrupt

        def full(self):
            raise OSError(errno.ENOSPC, "No space left on device")

        federator = toy_federator(callbacks=[callback(tensorboard(tmp_path), most=0), Interrupted()])
        monkeypatch.setattr(TensorBoardLogger, "finalize", lambda self, status: full(self))
        with pytest.raises(KeyboardInterrupt):
            federator.fit()


class Recorder(Logger):
    """A logger that remembers its calls; like most, it takes no figures with the hyperparameters."""

    name, version = "recorder", 0

    def __init__(self):
        self.calls = []

    def log_metrics(self, metrics, step=None):
        self.calls.append(("metrics", step, dict(metrics)))

    def log_hyperparams(self, params):
        self.calls.append(("hyperparameters", dict(params)))

    def finalize(self, status):
        self.calls.append(("finalize", status))


class TestAnyLogger:
    def test_users_logger_gets_hyperparameters_rounds_and_the_end(self):
        recorder = Recorder()
        federator_of([callback(recorder)], rounds=2).fit()
        assert recorder.calls == [
            ("hyperparameters", HYPERPARAMETERS),
            ("metrics", 1, figures(1)),
            ("metrics", 2, figures(2)),
            ("finalize", "success"),
        ]

    def test_an_interrupted_run_is_finalized_as_failed(self):
        recorder = Recorder()
        federator = federator_of([callback(recorder)])
        federator.fit(until=1)
        federator.call("on_exception", KeyboardInterrupt())
        assert recorder.calls[-1] == ("finalize", "failed")

    def test_going_on_with_a_finished_run_logs_no_round_again(self):
        federator, recorder = federator_of([]), Recorder()
        federator.fit()
        federator.callbacks = [callback(recorder)]
        federator.fit()
        assert [call[0] for call in recorder.calls] == ["hyperparameters", "finalize"]

    def test_csv_logger_has_a_line_per_round(self, tmp_path):
        federator_of([callback(CSVLogger(tmp_path, "hafl", 0))]).fit()
        with (tmp_path / "hafl" / "version_0" / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["step"], float(row["round/val_acc"])) for row in rows] == [("1", 0.51), ("2", 0.52), ("3", 0.53)]


class TestWorstTen:
    def table(self, *metrics):
        layout = layout_of([2])
        updates = [update_of((client, 0), 0, layout, its) for client, its in enumerate(metrics)]
        rows = worst_ten(SimpleNamespace(updates=updates)).splitlines()
        return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]

    def test_lowest_accuracy_comes_first_with_the_other_figures_and_the_fitted_one(self):
        low = {"distributed/val_acc": 0.2, "distributed/val_loss": 3.0, "fitted/val_acc": 0.6}
        header, _, *rows = self.table(metrics_of((0, 0), 1), low)
        assert header == ["client", "job", "examples", "val_acc", "val_loss", "val_acc after local training"]
        assert rows == [["1", "0", "10", "0.2000", "3.0000", "0.6000"], ["0", "0", "10", "0.5100", "0.4900", "-"]]

    def test_where_only_a_loss_is_logged_the_highest_comes_first(self):
        _, _, *rows = self.table({"distributed/val_loss": 1.0}, {"distributed/val_loss": 2.0})
        assert [row[0] for row in rows] == ["1", "0"]

    def test_what_is_no_number_is_worst_and_ties_go_by_job(self):
        values = [0.5, math.nan, 0.5, 0.1]
        _, _, *rows = self.table(*({"distributed/val_acc": value} for value in values))
        assert [row[0] for row in rows] == ["1", "3", "0", "2"]

    def test_nothing_measured_is_no_table(self):
        assert self.table({"fit/train_loss": 1.0}) == []
