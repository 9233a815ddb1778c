import numpy as np
import pytest
from sklearn.decomposition import PCA

from flt.callbacks import clusters
from flt.callbacks.clusters import Clustered
from flt.callbacks.figures import cluster_pictures
from flt.callbacks.figures.heatmap import DPI, pixels

pytestmark = pytest.mark.slow  # whole runs and fits


JOBS = [(client, index) for client in range(8) for index in range(5)]
TASKS = {job: ("SST-2", "QNLI", "QQP", "RTE", "MRPC")[job[1]] for job in JOBS}


def found_of(jobs, groups, size=30):
    return Clustered(tuple(jobs), tuple(groups), np.random.default_rng(0).normal(size=(len(jobs), size)))


class TestPrincipal:
    @pytest.mark.parametrize("shape", [(20, 5), (5, 40)])
    def test_components_are_those_of_scikit_learn_up_to_their_signs(self, shape):
        features = np.random.default_rng(1).normal(size=shape)
        at, shares = clusters.principal(features)
        expected = PCA(2).fit(features)
        np.testing.assert_allclose(np.abs(at), np.abs(expected.transform(features)), atol=1e-9)
        np.testing.assert_allclose(shares, expected.explained_variance_ratio_)

    def test_signs_do_not_depend_on_the_solver(self):
        at, _ = clusters.principal(np.random.default_rng(1).normal(size=(9, 4)))
        assert (at[np.abs(at).argmax(axis=0), [0, 1]] > 0).all()

    @pytest.mark.parametrize("shape", [(1, 3), (2, 3), (3, 1)])
    def test_too_few_for_two_components_leave_the_others_zero(self, shape):
        at, shares = clusters.principal(np.ones(shape))
        assert not at.any()
        assert not shares.any()


class TestTaskMap:
    def test_colours_are_tasks_and_markers_are_groups(self):
        figure = cluster_pictures.task_map(found_of(JOBS, [1 + job[0] % 2 for job in JOBS]), TASKS, 3)
        (axes,) = figure.axes
        colours = {TASKS[job]: set() for job in JOBS}
        shapes = {1: set(), 2: set()}
        for job, point in zip(JOBS, axes.collections, strict=True):
            colours[TASKS[job]].add(tuple(point.get_facecolor()[0]))
            shapes[1 + job[0] % 2].add(point.get_paths()[0].vertices.tobytes())
        assert all(len(its) == 1 for its in (*colours.values(), *shapes.values()))
        assert len(set.union(*colours.values())) == 5
        assert len(set.union(*shapes.values())) == 2
        by_task, by_group = ([text.get_text() for text in legend.get_texts()] for legend in figure.legends)
        assert by_task == ["MRPC  (8)", "QNLI  (8)", "QQP  (8)", "RTE  (8)", "SST-2  (8)"]
        assert by_group == ["1  (20)", "2  (20)"]

    def test_points_lie_at_the_principal_components(self):
        found = found_of(JOBS, [1] * 40)
        axes = cluster_pictures.task_map(found, TASKS, 3).axes[0]
        at = [point.get_offsets()[0] for point in axes.collections]
        np.testing.assert_allclose(at, clusters.principal(found.features)[0])

    @pytest.mark.parametrize(("tasks", "groups"), [(1, 1), (5, 5), (20, 30)])
    def test_every_size_can_be_drawn_and_no_legend_is_cut(self, tasks, groups):
        jobs = [(client, 0) for client in range(40)]
        names = {job: f"a task with a long name {job[0] % tasks}" for job in jobs}
        figure = cluster_pictures.task_map(found_of(jobs, [1 + c % groups for c, _ in jobs]), names, 1)
        height, width, _ = pixels(figure).shape
        assert max(height, width) <= 20 * DPI
        boxes = [legend.get_window_extent() for legend in figure.legends]
        assert all(box.y0 >= 0 and box.y1 <= height and box.x1 <= width for box in boxes)
        assert boxes[0].y0 >= boxes[1].y1


class TestCosineMatrix:
    def test_cells_are_the_cosines_but_for_a_group_and_itself(self):
        values = np.array([[1.0, -0.004], [-0.004, 1.0]])
        axes = cluster_pictures.cosine_matrix([2, 7], values, 3).axes[0]
        shown = np.asarray(axes.images[0].get_array().filled(np.nan))
        np.testing.assert_array_equal(shown, [[np.nan, -0.004], [-0.004, np.nan]])
        assert [text.get_text() for text in axes.texts] == ["0.00", "0.00"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["2", "7"]

    @pytest.mark.parametrize("cosine", [0.0, 0.14, -1.0])
    def test_a_colour_means_the_same_cosine_in_every_picture(self, cosine):
        axes = cluster_pictures.cosine_matrix([1, 2], np.full((2, 2), cosine), 3).axes[0]
        assert axes.images[0].get_clim() == (-1, 1)
        assert {text.get_color() for text in axes.texts} == {"white" if abs(cosine) == 1 else "black"}

    @pytest.mark.parametrize("groups", [2, 16, 60])
    def test_every_size_can_be_drawn(self, groups):
        figure = cluster_pictures.cosine_matrix(list(range(groups)), np.eye(groups), 1)
        assert bool(figure.axes[0].texts) == (groups <= 16)
        assert max(pixels(figure).shape) <= 20 * DPI


class TestCurves:
    HISTORY = [{"round": 1, "cluster/within": 1.0}, {"round": 2, "cluster/within": 0.5, "round/clustering_acc": 0.9}]

    def lines(self, axes):
        return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}

    def test_each_figure_is_a_line_over_the_rounds_that_have_it(self):
        first, second = cluster_pictures.curves(self.HISTORY).axes
        assert self.lines(first) == {"share of jobs in their task's group": ([2], [0.9])}
        assert self.lines(second) == {"within a cluster": ([1, 2], [1.0, 0.5])}

    def test_a_panel_without_figures_is_left_out_and_without_any_there_is_no_picture(self):
        assert len(cluster_pictures.curves(self.HISTORY[:1]).axes) == 1
        assert cluster_pictures.curves([{"round": 1}]) is None
        assert cluster_pictures.curves([]) is None
