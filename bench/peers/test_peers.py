"""Tests of the shapes, masks and conclusions: python -m unittest discover bench/peers. PyTorch is needed, nothing is built."""

import tempfile
import unittest
from dataclasses import replace
from pathlib import Path

import torch

import options
import record as records
import rows
from peers import read, sdpa, write
from torch_peer import inputs


def small(rule, reach=0, causal=True):
    """A row of a few queries."""
    row = rows.Row("options", "forward", "f32", 2, 3, 3, 4, 24, 24, causal)
    return replace(row, rule=rule, reach=reach)


ROWS = [small("window", 5), small("lifetimes", 6), small("segments", 8), small("segments", 8, False)]


class Options(unittest.TestCase):
    def test_pairs_are_what_the_mask_shows(self):
        for row in ROWS:
            x = options.side(row, 3)
            shown = torch.isfinite(options.mask(row, x)).expand(row.batch, row.heads, 24, 24).sum().item()
            if row.rule == "segments":  # causal counts half of N·M, as everywhere
                shown = row.batch * row.heads * 3 * 64 * (0.5 if row.causal else 1)
            self.assertEqual(options.pairs(row, x), shown, f"{row} seed=3")

    def test_every_query_sees_itself_and_nothing_later(self):
        for row in (row for row in ROWS if row.causal):
            mask = options.mask(row, options.side(row, 3)).expand(row.batch, row.heads, 24, 24)
            self.assertTrue((mask.diagonal(dim1=2, dim2=3) == 0).all(), f"{row} seed=3")
            self.assertTrue(torch.isinf(mask).logical_or(torch.ones(24, 24).tril().bool()).all(), f"{row} seed=3")

    def test_a_mask_of_some_queries_is_those_rows_of_the_whole(self):
        some = torch.tensor([0, 5, 23])
        for row in [*ROWS, small("key_bias")]:
            x = options.side(row, 3)
            whole = options.mask(row, x)
            self.assertTrue(torch.equal(options.mask(row, x, some), whole[:, :, some]), f"{row} seed=3")

    def test_a_bias_without_a_mask_is_a_row_per_head(self):
        row = small("key_bias", causal=False)
        self.assertEqual(options.mask(row, options.side(row, 3)).shape, (2, 3, 1, 24))

    def test_segments_are_sequences_by_themselves(self):
        row = small("segments", 8)
        x = inputs(row, 3)
        packed = sdpa(x, row, options.mask(row, x))
        part = {name: x[name][:, :, 8:16] for name in "qkv"}
        alone = sdpa(part, replace(row, rule="plain", queries=8, keys=8))
        self.assertLess((packed[:, :, 8:16] - alone).abs().max().item(), 1e-5, "seed=3")

    def test_tensors_come_back_from_the_layout_that_they_were_put_in(self):
        x = inputs(small("plain"), 3)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.safetensors"
            write(x, True, path)
            lying, back = read(path, False), read(path, True)
        for name in "qkv":
            self.assertEqual(lying[name].shape, (2, 24, 3, 4))
            self.assertTrue(torch.equal(back[name], x[name]), f"{name} seed=3")

    def test_plain_counts_as_the_other_families_do(self):
        row = small("plain")
        self.assertEqual(options.flops(row, {}), 4 * 4 * 2 * 3 * 24 * 24 / 2)
        self.assertEqual(options.flops(replace(row, kind="backward"), {}), 3.5 * 4 * 4 * 2 * 3 * 24 * 24 / 2)

    def test_the_protocol_names_windows_with_their_keys(self):
        self.assertEqual(options.call(small("window", 5)), {"window": 5})
        self.assertEqual(options.call(small("lifetimes", 5)), "lifetimes")


class Rows(unittest.TestCase):
    def test_names_are_unique(self):
        for quick in (False, True):
            names = [str(row) for row in rows.rows(rows.FAMILIES, quick)]
            self.assertEqual(len(names), len(set(names)))

    def test_options_are_held_against_regards_own_plain_rate(self):
        for row in rows.options(False):
            labels = {c.label: c for c in rows.contenders(row, ["torch"], 2)}
            self.assertEqual(labels["regard_plain"].measures(row).rule, "plain")
            self.assertEqual(labels["regard"].measures(row), row)
            self.assertEqual("torch" in labels, rows.storable(row), str(row))


def result(median, rate, share=None):
    """As `summary` makes it, as far as conclusions look."""
    return {"median_s": median, "gflops": rate, "ceiling_fraction": share}


class Conclusions(unittest.TestCase):
    def test_the_smallest_ratio_is_kept_with_its_row(self):
        measured = [
            {"name": str(n), "family": "math", "kind": "forward"}
            | records.ratios({"regard": result(1, 1), "x": result(t, 1)})
            for n, t in ((1, 3.0), (2, 0.9), (3, 2.0))
        ]
        failed = {"name": "4", "family": "math", "kind": "forward", "failed": "a reason"}
        records.TARGETS["times_faster"]["x"] = 1.0
        self.addCleanup(records.TARGETS["times_faster"].pop, "x")
        found = records.conclusions([*measured, failed])
        self.assertEqual(found, {"times_faster": {"x": {"smallest": 0.9, "row": "2", "target": 1.0}}})
        self.assertEqual(records.sentences(found), ["smallest: 0.90x as fast as x (2), target 1"])

    def test_a_share_of_the_plain_rate_compares_rates_not_times(self):
        compared = records.ratios({"regard": result(1, 70), "regard_plain": result(9, 100), "torch": result(3, 1)})
        self.assertEqual(compared["results"]["regard"]["share_of_plain"], 0.7)
        self.assertEqual(compared["times_faster"], {"torch": 3.0})

    def test_ceilings_are_medians_of_both_readings(self):
        before = {"busy": 0.0, "fma_gflops": 380.0, "bf16_gflops": None, "read_gbps": 30.0}
        moment = records.between(before, before | {"read_gbps": 32.0})
        self.assertEqual((moment["read_gbps"], moment["bf16_gflops"]), (31.0, None))
        self.assertEqual(moment["readings"]["read_gbps"], [30.0, 32.0])


if __name__ == "__main__":
    unittest.main()
