//! Forward: queries in the lanes, codes and near keys along the rows of a table of weights.

use super::layout::{Block, Near};
use super::queries::{CODES, Panels};
use super::summary::{Keys, Summary};
use super::{Coded, careful};
use crate::exact::pack;
use crate::exact::softmax::add_product;
use crate::par::Jobs;
use crate::simd::{Across, Aligned, Lanes, Rows, Task, dispatch};
use crate::view::{DisjointRows, SharedRows, StridedMut};
use crate::{Output, Par};
use std::cell::RefCell;
use std::f64::consts::LN_2;
use std::ops::Range;

/// Near keys at a time.
pub(super) const NEAR: usize = 128;
/// Jobs that all heads together are cut into, as far as sequences are long enough.
const JOBS: usize = 16;

/// Blocks of one sequence and kv head.
pub(super) struct Job {
    pub(super) sequence: usize,
    pub(super) g: usize,
    pub(super) blocks: Range<i64>,
}

impl Coded<'_> {
    /// All jobs, at most `most` of a sequence and head; a function of the problem alone.
    pub(super) fn jobs(&self, most: usize) -> Vec<Job> {
        let heads = self.sequences.len() * self.dims.kv_heads;
        let most = JOBS.div_ceil(heads.max(1)).min(most);
        let of = |(sequence, g): (usize, usize)| {
            let pieces = self.sequences[sequence].pieces(&self.rule, most);
            pieces.into_iter().map(move |blocks| Job { sequence, g, blocks })
        };
        (0..self.sequences.len()).flat_map(|sequence| (0..self.dims.kv_heads).map(move |g| (sequence, g))).flat_map(of).collect()
    }
}

pub(super) fn run(coded: &Coded<'_>, out: &mut Output<'_>, par: Par) {
    share(coded, out, |shared| {
        shared.clear_padding();
        let all = coded.jobs(usize::MAX);
        par.run(all.len(), coded.flops(), |jobs| {
            SCRATCH.with_borrow_mut(|scratch| dispatch(par.level_in_use(), Worker { shared, all: &all, jobs, scratch }));
        });
    });
}

/// Outputs in rows that threads claim one by one.
pub(super) fn share(coded: &Coded<'_>, out: &mut Output<'_>, run: impl FnOnce(&Shared<'_>)) {
    let dims = &coded.dims;
    let rows: Vec<Range<usize>> = (0..dims.queries).map(|n| n..n + 1).collect();
    let mut lse = out.lse.as_deref_mut().map(|lse| {
        lse.fill(f32::NEG_INFINITY);
        StridedMut::contiguous(lse, [dims.batch, dims.heads, dims.queries, 1], "lse").expect("lse was checked")
    });
    run(&Shared { coded, o: out.o.share(&rows), lse: lse.as_mut().map(|lse| DisjointRows::new(lse, &rows)) });
}

pub(super) struct Shared<'a> {
    pub(super) coded: &'a Coded<'a>,
    pub(super) o: SharedRows<'a>,
    pub(super) lse: Option<DisjointRows<'a, f32>>,
}

impl Shared<'_> {
    /// Rows that belong to no sequence are zeros.
    pub(super) fn clear_padding(&self) {
        let zeros = vec![0.0; self.coded.dims.dv];
        for [b, n] in self.coded.padding() {
            (0..self.coded.dims.heads).for_each(|h| self.o.write(b, h, n, |_| &zeros));
        }
    }
}

impl Coded<'_> {
    /// Batch row and number of every row of queries that is padding.
    pub(super) fn padding(&self) -> Vec<[usize; 2]> {
        let mut valid = vec![false; self.dims.batch * self.dims.queries];
        for sequence in &self.sequences {
            valid[sequence.batch * self.dims.queries..][sequence.queries.clone()].fill(true);
        }
        let place = |at: usize| [at / self.dims.queries, at % self.dims.queries];
        valid.iter().enumerate().filter(|(_, valid)| !**valid).map(|(at, _)| place(at)).collect()
    }
}

/// Working memory of a thread.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) panels: Panels,
    /// Panel by panel `[S padded][2·N]`: logits, then weights.
    pub(super) weights: Aligned<f32>,
    pub(super) positions: Aligned<i32>,
    maximum: Aligned<f32>,
    sum: Aligned<f32>,
    acc: Aligned<f32>,
    near: Aligned<f32>,
    pub(super) values: Aligned<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

struct Worker<'a> {
    shared: &'a Shared<'a>,
    all: &'a [Job],
    jobs: &'a Jobs<'a>,
    scratch: &'a mut Scratch,
}

impl Task for Worker<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let coded = self.shared.coded;
        while let Some(job) = self.jobs.take() {
            let Job { sequence, g, blocks } = &self.all[job];
            let sequence = &coded.sequences[*sequence];
            let keys = Keys::of(sequence, *g, &coded.v, coded.codes);
            let mut summary = Summary::new(coded.codewords[*g].count(), coded.dims.dv, sequence.keys.len());
            for number in blocks.clone() {
                let block = sequence.block(&coded.rule, number);
                summary.move_to(s, keys, &block);
                for h in g * coded.dims.group()..(g + 1) * coded.dims.group() {
                    let attend = Attend { shared: self.shared, summary: &summary, keys, block: &block, h };
                    s.vectorize(Run(attend, self.scratch));
                }
            }
        }
    }
}

/// One block of one query head.
pub(super) struct Attend<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) summary: &'a Summary,
    pub(super) keys: Keys<'a>,
    pub(super) block: &'a Block,
    pub(super) h: usize,
}

pub(super) struct Run<'a>(pub(super) Attend<'a>, pub(super) &'a mut Scratch);

impl Task for Run<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Run(attend, scratch) = self;
        let coded = attend.shared.coded;
        let rows = attend.block.rows.len();
        if rows == 0 {
            return;
        }
        let size = attend.summary.counts().len() * 2 * S::N;
        let weights = scratch.weights.take(rows.div_ceil(2 * S::N) * size);
        coded.logits::<S, R>(s, [attend.keys.head[0], attend.h], attend.block.rows.clone(), &mut scratch.panels, weights);
        attend.weigh::<S, R>(s, scratch);
        attend.gather_far::<S, R>(s, scratch);
        attend.finish(s, scratch);
    }
}

/// Positions of a block's rows in lanes; lanes beyond repeat the last.
pub(super) fn positions(block: &Block, into: &mut [i32]) {
    for (lane, position) in into.iter_mut().enumerate() {
        *position = (block.position + lane.min(block.rows.len() - 1) as i64) as i32;
    }
}

impl Attend<'_> {
    fn width<S: Lanes>(&self) -> usize {
        self.shared.coded.dims.dv.next_multiple_of(S::N)
    }

    /// Logits become weights, panel by panel; sums, and what near keys add to the output.
    #[inline(always)]
    fn weigh<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let (lanes, width) = (2 * S::N, self.width::<S>());
        let (panels, size) = (self.block.rows.len().div_ceil(lanes), self.summary.counts().len() * lanes);
        scratch.acc.take(panels * lanes * width).fill(0.0);
        positions(self.block, scratch.positions.take(panels * lanes));
        let Scratch { weights, positions, maximum, sum, .. } = scratch;
        let (weights, positions) = (weights.take(panels * size), positions.get(panels * lanes));
        let (maximum, sum) = (maximum.take(panels * lanes), sum.take(panels * lanes));
        for (i, weights) in weights.chunks_mut(size).enumerate() {
            let at = i * lanes..(i + 1) * lanes;
            self.exponentiate(s, weights, &positions[at.clone()], (&mut maximum[at.clone()], &mut sum[at]));
        }
        for near in &self.block.near {
            for start in near.keys().step_by(NEAR) {
                self.gather_near::<S, R>(s, (near, start..near.keys().end.min(start + NEAR)), panels, scratch);
            }
        }
    }

    /// `2^(x - m)` of one panel, m over all that each lane sees, and the sums over far keys.
    #[inline(always)]
    fn exponentiate<S: Lanes>(&self, s: S, weights: &mut [f32], positions: &[i32], (maximum, sum): (&mut [f32], &mut [f32])) {
        let (lanes, counts) = (2 * S::N, self.summary.counts());
        let lowest = s.splat(f32::NEG_INFINITY);
        let at = [s.load_i(positions), s.load_i(&positions[S::N..])];
        let mut most = [lowest; 2];
        for (row, _) in weights.chunks(lanes).zip(counts).filter(|(_, count)| **count > 0) {
            most[0] = s.max(s.load(row), most[0]);
            most[1] = s.max(s.load(&row[S::N..]), most[1]);
        }
        for near in &self.block.near {
            for key in near.within(near.keys(), self.shared.coded.rule.gap, (positions[0], positions[lanes - 1])) {
                let (first, last) = near.seen_by(key, self.shared.coded.rule.gap);
                let row = &weights[self.keys.codes[key] as usize * lanes..][..lanes];
                for c in 0..2 {
                    most[c] = s.max(s.select(s.between(at[c], first, last), s.load(&row[c * S::N..]), lowest), most[c]);
                }
            }
        }
        let mut total = [s.zero(); 2];
        let mut base = most;
        for c in 0..2 {
            base[c] = s.select(s.equal(most[c], lowest), s.zero(), most[c]);
            s.store(&mut maximum[c * S::N..], most[c]);
        }
        for (row, &count) in weights.chunks_mut(lanes).zip(counts) {
            for c in 0..2 {
                let e = s.exp2(s.sub(s.load(&row[c * S::N..]), base[c]));
                s.store(&mut row[c * S::N..], e);
                if count > 0 {
                    total[c] = s.mul_add(e, s.splat(count as f32), total[c]);
                }
            }
        }
        s.store(sum, total[0]);
        s.store(&mut sum[S::N..], total[1]);
    }

    /// Some near keys: their weights are those of their codes where a lane sees them.
    #[inline(always)]
    fn gather_near<S: Lanes, const R: usize>(&self, s: S, (near, keys): (&Near, Range<usize>), panels: usize, scratch: &mut Scratch) {
        let (lanes, width) = (2 * S::N, self.width::<S>());
        let size = self.summary.counts().len() * lanes;
        let first = self.keys.first;
        let values = scratch.values.take(NEAR * width);
        pack::stage_rows(s, self.keys.values, self.keys.head, first + keys.start..first + keys.end, &mut values[..keys.len() * width]);
        let p = scratch.near.take(NEAR * lanes);
        let (acc, sum) = (scratch.acc.take(panels * lanes * width), scratch.sum.take(panels * lanes));
        for i in 0..panels {
            let at = &scratch.positions.get(panels * lanes)[i * lanes..(i + 1) * lanes];
            let seen = near.within(keys.clone(), self.shared.coded.rule.gap, (at[0], at[lanes - 1]));
            let at = [s.load_i(at), s.load_i(&at[S::N..])];
            let weights = &scratch.weights.get(panels * size)[i * size..];
            let sum = &mut sum[i * lanes..(i + 1) * lanes];
            let mut total = [s.load(sum), s.load(&sum[S::N..])];
            for (key, p) in seen.clone().zip(p.chunks_mut(lanes)) {
                let (first, last) = near.seen_by(key, self.shared.coded.rule.gap);
                let row = &weights[self.keys.codes[key] as usize * lanes..][..lanes];
                for c in 0..2 {
                    let weight = s.keep(s.between(at[c], first, last), s.load(&row[c * S::N..]));
                    total[c] = s.add(total[c], weight);
                    s.store(&mut p[c * S::N..], weight);
                }
            }
            s.store(sum, total[0]);
            s.store(&mut sum[S::N..], total[1]);
            for group in (0..lanes.min(self.block.rows.len() - i * lanes)).step_by(R) {
                let acc = &mut acc[(i * lanes + group) * width..][..R * width];
                let p = Across(Rows::new(&p[group..], lanes));
                add_product::<S, R>(s, (acc, width), p, Rows::new(values, width).from(seen.start - keys.start), seen.len());
            }
        }
    }

    /// Far keys: weights of codes times sums of values.
    #[inline(always)]
    fn gather_far<S: Lanes, const R: usize>(&self, s: S, scratch: &mut Scratch) {
        let (lanes, width, counts) = (2 * S::N, self.width::<S>(), self.summary.counts());
        let rows = self.block.rows.len();
        let (panels, size) = (rows.div_ceil(lanes), counts.len() * lanes);
        let acc = scratch.acc.take(panels * lanes * width);
        let weights = scratch.weights.take(panels * size);
        for start in (0..counts.len()).step_by(CODES) {
            let codes = start..counts.len().min(start + CODES);
            if counts[codes.clone()].iter().all(|&count| count == 0) {
                continue;
            }
            for (i, weights) in weights.chunks_mut(size).enumerate() {
                for code in codes.clone().filter(|&code| counts[code] == 0) {
                    weights[code * lanes..(code + 1) * lanes].fill(0.0);
                }
                for group in (0..lanes.min(rows - i * lanes)).step_by(R) {
                    let acc = &mut acc[(i * lanes + group) * width..][..R * width];
                    let p = Across(Rows::new(&weights[start * lanes + group..], lanes));
                    add_product::<S, R>(s, (acc, width), p, self.summary.rows().from(start), codes.len());
                }
            }
        }
    }

    /// Divides by the sums and writes `o` and `lse`.
    #[inline(always)]
    fn finish<S: Lanes>(&self, s: S, scratch: &mut Scratch) {
        let part = self.block.rows.clone();
        let (width, dv) = (self.width::<S>(), self.shared.coded.dims.dv);
        let acc = scratch.acc.take(part.len() * width);
        let (maximum, sum) = (scratch.maximum.take(part.len()), scratch.sum.take(part.len()));
        let b = self.keys.head[0];
        for (i, (row, n)) in acc.chunks_mut(width).zip(part).enumerate() {
            let seen = sum[i] != 0.0;
            let mut lse = if seen { ((f64::from(maximum[i]) + f64::from(sum[i]).log2()) * LN_2) as f32 } else { f32::NEG_INFINITY };
            if !divide(s, row, sum[i]) {
                lse = careful::row(self.shared.coded, (self.summary, self.keys, self.block), [self.h, n], &mut row[..dv]);
            }
            self.shared.o.write(b, self.h, n, |_| &row[..dv]);
            if let Some(all) = &self.shared.lse {
                all.claim(b, self.h, n).row(0)[0] = lse;
            }
        }
    }
}

/// Divides a row, or clears it where nothing was seen; whether all values came out finite.
#[inline(always)]
fn divide<S: Lanes>(s: S, row: &mut [f32], sum: f32) -> bool {
    if sum == 0.0 {
        row.fill(0.0);
        return true;
    }
    let (factor, mut total) = (s.splat(1.0 / sum), s.zero());
    for x in row.chunks_mut(S::N) {
        let scaled = s.mul(s.load(x), factor);
        total = s.add(total, s.mul(scaled, s.zero()));
        s.store(x, scaled);
    }
    s.sum(total) == 0.0
}
