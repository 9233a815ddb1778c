import dataclasses
import warnings

import numpy as np
import pytest
import torch
from fake_federator import clients_of, layout_of, state_of, update_of

from flt.callbacks.figures import pictures
from flt.callbacks.figures.heatmap import COVERED, DPI, pixels
from flt.data.clients import ClientSpec

pytestmark = pytest.mark.slow  # whole runs and fits


def values_of(axes):
    return np.asarray(axes.images[0].get_array().filled(np.nan))


def texts_of(axes):
    return [text.get_text() for text in axes.texts]


def names_of(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def update(client, layout, kept, index=0):
    return dataclasses.replace(update_of((client, index), 0, layout, {}), kept=kept)


class TestPartition:
    def test_cells_are_the_counts_of_labels_and_bars_the_sizes(self):
        figure = pictures.partition(clients_of(4, labels=3))
        heat, bars = figure.axes
        assert values_of(heat).tolist() == [[1, 2, 3]] * 4
        assert texts_of(heat) == ["1", "2", "3"] * 4
        assert [bar.get_width() for bar in bars.patches] == [6] * 4
        assert names_of(heat) == ["0", "1", "2", "3"]
        assert figure.get_suptitle() == "24 training examples, 4 clients"

    def test_tasks_have_rows_of_their_own_and_may_differ_in_labels(self):
        clients = clients_of(2, labels=2, tasks=("sst2", "agnews"))
        news = dataclasses.replace(clients[1].data[1], label_counts=(1, 1, 1, 0))
        clients[1] = dataclasses.replace(clients[1], data=(clients[1].data[0], news))
        heat = pictures.partition(clients).axes[0]
        assert names_of(heat) == ["0  sst2", "0  agnews", "1  sst2", "1  agnews"]
        assert values_of(heat).shape == (4, 4)
        assert np.isnan(values_of(heat)[0]).tolist() == [False, False, True, True]

    def test_columns_have_the_names_of_the_classes(self):
        clients = clients_of(2, labels=2, tasks=("one", "two"))
        for number, client in clients.items():
            one, two = client.data
            data = (one.but(label_names=("ham", "spam")), two.but(label_names=("5$ or 10$", "猫\n", "unused")))
            clients[number] = dataclasses.replace(client, data=data)
        figure = pictures.partition(clients)
        heat = figure.axes[0]
        assert [label.get_text() for label in heat.get_xticklabels()] == ["ham", "spam", r"5\$ or 10\$", "猫"]
        assert np.isnan(values_of(heat)).tolist() == 2 * [[False, False, True, True], [True, True, False, False]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pixels(figure)

    def test_some_of_many_classes_are_named(self):
        names = tuple(f"class {k}" for k in range(77))
        clients = {0: ClientSpec(0, (clients_of(1, labels=77)[0].data[0].but(label_names=names),))}
        labels = pictures.partition(clients).axes[0].get_xticklabels()
        assert [label.get_text() for label in labels] == list(names[::3])

    def test_a_task_that_all_share_is_not_named(self):
        assert names_of(pictures.partition(clients_of(2, tasks=("all",))).axes[0]) == ["0", "1"]

    def test_more_clients_than_are_legible_are_cut_and_the_title_has_the_total(self):
        figure = pictures.partition(clients_of(200, labels=3))
        assert values_of(figure.axes[0]).shape == (pictures.ROWS, 3)
        assert figure.get_suptitle() == "1,200 training examples, 200 clients, the first 50 shown"

    def test_many_labels_have_colours_instead_of_numbers(self):
        heat = pictures.partition(clients_of(2, labels=77)).axes[0]
        assert not heat.texts
        assert values_of(heat).shape == (2, 77)

    def test_without_counts_sizes_are_shown(self):
        (bars,) = pictures.partition(clients_of(3, labels=0)).axes
        assert [bar.get_width() for bar in bars.patches] == [1, 1, 1]
        assert names_of(bars) == ["0", "1", "2"]


class TestRankMap:
    def test_counts_are_of_clients_not_of_jobs(self):
        layout = layout_of([3, 3])
        first, second = layout.layers
        updates = [
            update(0, layout, {first: (0, 1), second: (2,)}),
            update(0, layout, {first: (0, 1), second: (2,)}, index=1),
            update(1, layout, {first: (0,), second: ()}),
        ]
        figure = pictures.rank_map(layout, state_of(layout), updates)
        assert values_of(figure.axes[0]).tolist() == [[2, 1, 0], [0, 0, 1]]

    def test_a_pair_that_a_layer_lacks_is_no_cell(self):
        layout = layout_of([2, 4])
        counts = values_of(pictures.rank_map(layout, state_of(layout), []).axes[0])
        assert np.isnan(counts).tolist() == [[False, False, True, True], [False] * 4]

    def test_pruned_pairs_are_hatched_in_every_panel(self):
        layout = layout_of([3, 2])
        first, second = layout.layers
        state = dataclasses.replace(state_of(layout), alive={first: (0, 2), second: ()})
        figure = pictures.rank_map(layout, state, [])
        for axes in figure.axes:
            cells = {(patch.get_x() + 0.5, patch.get_y() + 0.5) for patch in axes.patches}
            assert cells == {(1, 0), (0, 1), (1, 1)}
            assert {patch.get_hatch() for patch in axes.patches} == {COVERED["hatch"]}
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pruned"]

    def test_scores_have_a_panel_for_each_group_with_members_and_nothing_else(self):
        layout = layout_of([4])
        one = pictures.rank_map(layout, state_of(layout), [])
        assert [axes.get_title() for axes in one.axes] == ["clients per component", "importance"]
        three = pictures.rank_map(layout, state_of(layout, groups=3), [])
        assert [axes.get_title() for axes in three.axes[1:]] == ["importance in group 1", "importance in group 2"]
        assert values_of(one.axes[1]).tolist() == [[1, 2, 3, 4]]

    def test_without_scores_there_is_one_panel(self):
        layout = layout_of([4])
        state = state_of(layout)
        state.groups[0].scores.update({name: torch.zeros(4) for name in layout.layers})
        assert len(pictures.rank_map(layout, state, []).axes) == 1

    @pytest.mark.parametrize(("layers", "rank"), [(1, 1), (2, 8), (100, 64)])
    def test_every_size_can_be_drawn(self, layers, rank):
        layout = layout_of([rank] * layers)
        names = list(layout.layers)
        state = dataclasses.replace(state_of(layout), alive=dict.fromkeys(names, (0,)))
        height, width, channels = pixels(pictures.rank_map(layout, state, [])).shape
        assert channels == 3
        assert max(height, width) <= 20 * DPI


class TestAssignment:
    def test_jobs_are_in_the_row_of_their_task_and_the_colour_of_their_group(self):
        tasks = {(client, index): name for client in range(3) for index, name in enumerate(("sst2", "mrpc"))}
        assignment = {(0, 0): 2, (0, 1): 1, (1, 0): 2, (1, 1): 2}
        state = state_of(layout_of([2]), groups=3, assignment=assignment)
        figure = pictures.assignment(state, tasks)
        (axes,) = figure.axes
        assert names_of(axes) == ["sst2", "mrpc"]
        assert values_of(axes).tolist() == [[1, 1, 2], [0, 1, 2]]
        assert texts_of(axes) == ["2", "2", "", "1", "2", ""]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["1  (1)", "2  (3)", "none yet  (2)"]

    def test_tasks_of_unequal_numbers_of_jobs_leave_cells_empty(self):
        tasks = {(0, 0): "a", (1, 0): "a", (2, 0): "b"}
        state = state_of(layout_of([2]), groups=2, assignment=dict.fromkeys(tasks, 1))
        values = values_of(pictures.assignment(state, tasks).axes[0])
        assert np.isnan(values).tolist() == [[False, False], [False, True]]

    @pytest.mark.parametrize("groups", [2, 12, 30])
    def test_colours_of_groups_differ(self, groups):
        tasks = {(client, 0): "a" for client in range(groups - 1)}
        state = state_of(layout_of([2]), groups=groups, assignment={(c, 0): c + 1 for c in range(groups - 1)})
        image = pictures.assignment(state, tasks).axes[0].images[0]
        colours = {tuple(image.cmap(image.norm(code))) for code in range(groups)}
        assert len(colours) == groups


class TestShortNames:
    @pytest.mark.parametrize(
        ("names", "short"),
        [
            (["a.b.c"], ["c"]),
            (["m.l.0.q", "m.l.1.q"], ["0", "1"]),
            (["m.l.0.q", "m.l.0.out.d"], ["q", "out.d"]),
            (["m.q", "m.q.d"], ["q", "q.d"]),
            (["a", "b.c"], ["a", "b.c"]),
        ],
    )
    def test_shared_parts_go_and_names_stay_distinct(self, names, short):
        assert pictures.short_names(names) == short


def test_pixels_are_bytes_of_the_figures_size():
    figure = pictures.partition(clients_of(2))
    width, height = figure.get_size_inches() * DPI
    image = pixels(figure)
    assert image.dtype == np.uint8
    assert image.shape[:2] == pytest.approx((height, width), abs=1)
    assert image.shape[2] == 3


def test_pyplot_knows_none_of_the_figures():
    import matplotlib.pyplot as plt

    pixels(pictures.partition(clients_of(2)))
    assert plt.get_fignums() == []
