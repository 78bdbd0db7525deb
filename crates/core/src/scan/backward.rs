//! Gradients of the causal form.
//!
//! With `dO' = dO / (den + ε)` and `dden = -(dO·o) / (den + ε)`, the state's gradient going backwards as `dS`, `dz`:
//!
//! ```text
//! dq = dO' Sᵀ + dden z + dA k     dk = v dSᵀ + dz + dAᵀ q     dv = k dS + Aᵀ dO'     dA = dO' vᵀ + dden, lower triangle
//! dS += qᵀ dO'                    dz += Σ dden q
//! ```
//!
//! A part of a sequence is one job for all query heads of a kv head: it computes the states of its blocks anew from the one that it begins
//! with, then goes backwards from the gradient of the one that it ends with. Both are sums carried over parts beforehand.
//!
//! Gates: with `c_ijd` the share of channel d of the pair i, j in the loss, `dg_t = Σ_{i >= t > j} c_ij`. Pairs across the block, from the
//! state and into the state are sums of products that are there already; only inside a block it is a difference,
//! `Σ_{i >= t} q_i∘dq_i - Σ_{j >= t} k_j∘dk_j` without the pairs of a token with itself.

use super::block::{Forms, Head, Place, denominators, inverse, load};
use super::decay::Decayed;
use super::features::Map;
use super::forward::{begin, starts};
use super::job::{self, Job};
use super::plan::{Cuts, Stretch, pieces};
use super::sums::{Fill, Sums};
use super::tiles::{Multiply, Shape, Turn, add, clear_above, dot, multiply, scale};
use super::{Scan, Wanted, state};
use crate::simd::{Across, Along, Lanes, Rows, Task};
use crate::view::{DisjointRows, SharedRows, StridedMut, View};
use crate::{Par, Saved};
use std::ops::Range;

pub(super) fn run(scan: &Scan<'_>, saved: &Saved<'_>, wanted: Wanted<'_, '_>, par: Par) {
    let (cuts, dims) = (scan.cuts(scan.backward_part()), scan.dims);
    let starts = starts(scan, &cuts, par);
    let rims = Rims::new(scan, (saved, &cuts, starts.as_ref()), par);
    let ends = cuts.divide().then(|| {
        let fill = OfQueries { scan, cuts: &cuts, slopes: Slopes { saved, rims: &rims } };
        let mut sums = Sums::collect(scan, [dims.heads, cuts.parts.len()], &fill, par);
        sums.carry(&cuts.parts, true);
        sums
    });
    let keys = cuts.keys();
    let back = Back {
        scan,
        cuts: &cuts,
        slopes: Slopes { saved, rims: &rims },
        starts,
        ends,
        dq: wanted.dq.map(|dq| dq.share(&cuts.blocks)),
        dgates: wanted.dgates.map(|dgates| dgates.share(&cuts.blocks)),
        dk: wanted.dk.map(|dk| dk.share(&keys)),
        dv: wanted.dv.map(|dv| dv.share(&keys)),
    };
    job::run(&back, dims.batch * dims.kv_heads * cuts.parts.len(), 3.0 * scan.flops(), par);
}

/// `1 / (den + ε)` and `dden` of every query row, `[B, H, N, 2]`; empty where nothing is divided.
pub(super) struct Rims {
    values: Vec<f32>,
    heads: usize,
    queries: usize,
}

impl Rims {
    fn new(scan: &Scan<'_>, (saved, cuts, starts): (&Saved<'_>, &Cuts, Option<&Sums>), par: Par) -> Self {
        Rims::fill(scan, |into| {
            let count = scan.dims.batch * scan.dims.heads * cuts.parts.len();
            let rims = DisjointRows::new(into, &cuts.blocks);
            job::run(&Dividing { scan, cuts, saved, starts, into: rims }, count, scan.flops(), par);
        })
    }

    /// Rows that are made by `work`.
    pub(super) fn fill(scan: &Scan<'_>, work: impl FnOnce(&mut StridedMut<'_, f32>)) -> Self {
        let (heads, queries) = (scan.dims.heads, scan.dims.queries);
        let shape = [scan.dims.batch, heads, queries, 2];
        let mut values = Vec::new();
        if scan.rules.epsilon.is_some() {
            values = vec![0.0; shape.iter().product()];
            work(&mut StridedMut::contiguous(&mut values, shape, "rims").expect("so many were made"));
        }
        Rims { values, heads, queries }
    }

    fn get(&self, [b, h, n]: [usize; 3]) -> [f32; 2] {
        match self.values.is_empty() {
            true => [1.0, 0.0],
            false => {
                let at = 2 * ((b * self.heads + h) * self.queries + n);
                [self.values[at], self.values[at + 1]]
            }
        }
    }
}

/// What the output's gradient comes to.
#[derive(Clone, Copy)]
pub(super) struct Slopes<'a> {
    pub(super) saved: &'a Saved<'a>,
    pub(super) rims: &'a Rims,
}

impl Slopes<'_> {
    /// Rows of dO' and dden.
    #[inline(always)]
    pub(super) fn load<S: Lanes>(&self, s: S, head: &Head<'_>, rows: &Range<usize>, (d_o, dden): (&mut [f32], &mut [f32])) {
        let [_, width] = head.scan.widths();
        load(s, &self.saved.d_o, [head.b, head.h], &Stretch::of(rows.clone()), d_o, width);
        dden.fill(0.0);
        for ((n, row), dden) in rows.clone().zip(d_o.chunks_exact_mut(width)).zip(dden) {
            let [factor, slope] = self.rims.get([head.b, head.h, n]);
            *dden = slope;
            if factor != 1.0 {
                scale(s, row, factor);
            }
        }
    }
}

/// Writes the two numbers of rows whose denominators are known.
#[inline(always)]
pub(super) fn divide<S: Lanes>(
    s: S,
    head: &Head<'_>,
    (rows, lead): (&Range<usize>, usize),
    saved: &Saved<'_>,
    forms: &mut Forms,
    mut write: impl FnMut(usize, [f32; 2]),
) {
    let (scan, [_, width]) = (head.scan, head.scan.widths());
    let Some(epsilon) = scan.rules.epsilon else { return };
    let [o, d_o] = [forms.o.take(width), forms.d_o.take(width)];
    for (i, n) in rows.clone().enumerate() {
        for (from, into) in [(&saved.o, &mut *o), (&saved.d_o, &mut *d_o)] {
            load(s, from, [head.b, head.h], &Stretch::of(n..n + 1), into, width);
        }
        let factor = if i < lead { 0.0 } else { inverse(forms.rims.get(scan.rows())[i], epsilon) };
        write(n, [factor, -factor * dot(s, o, d_o)]);
    }
}

/// Finds the denominators of every block.
struct Dividing<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    saved: &'a Saved<'a>,
    starts: Option<&'a Sums>,
    into: DisjointRows<'a, f32>,
}

impl Job for Dividing<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (scan, heads) = (self.scan, self.scan.dims.heads);
        let (at, part) = (number / self.cuts.parts.len(), number % self.cuts.parts.len());
        let [b, h] = [at / heads, at % heads];
        let head = Head::new(scan, [b, h], &self.cuts.parts[part]);
        let ([dk, _], tokens) = (scan.widths(), scan.rows());
        let mut memory = std::mem::take(&mut forms.state);
        let state = memory.take(state::size(scan.widths()));
        begin(s, &head, self.starts.map(|starts| starts.get([b, h, part], heads)), state, forms);
        let [_, z, _] = state::parts(state, scan.widths());
        for block in self.cuts.parts[part].blocks.clone() {
            let (all, rows) = (&self.cuts.blocks[block], head.valid(&self.cuts.blocks[block]));
            let keys = head.sequence.beside(&rows);
            let (q, k) = (forms.q.take(tokens * dk), forms.k.take(tokens * dk));
            head.queries(s, &Stretch::of(rows.clone()), q);
            head.keys(s, &keys, k);
            denominators(s, (q, k), z, forms.rims.take(tokens));
            let mut claim = self.into.claim(b, h, block);
            divide(s, &head, (&rows, keys.lead), self.saved, forms, |n, pair| claim.row(n - all.start).copy_from_slice(&pair));
        }
        forms.state = memory;
    }
}

/// What the queries of parts add to the gradient of the state.
struct OfQueries<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    slopes: Slopes<'a>,
}

impl Fill for OfQueries<'_> {
    #[inline(always)]
    fn fill<S: Lanes>(&self, s: S, [b, h, part]: [usize; 3], slope: &mut [f32], forms: &mut Forms) {
        let (scan, part) = (self.scan, &self.cuts.parts[part]);
        let head = Head::new(scan, [b, h], part);
        state::clear(slope, scan.widths());
        for block in part.blocks.clone().rev() {
            let rows = head.valid(&self.cuts.blocks[block]);
            take_back(s, &head, &rows, self.slopes, slope, forms);
        }
    }
}

/// Takes the queries of a block into the gradient of the state that it begins with.
#[inline(always)]
pub(super) fn take_back<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, slopes: Slopes<'_>, slope: &mut [f32], forms: &mut Forms) {
    let (scan, tokens) = (head.scan, head.scan.rows());
    let [dk, dv] = scan.widths();
    let Forms { q, e, d_o, rims, total, .. } = forms;
    let (q, d_o, dden) = (q.take(tokens * dk), d_o.take(tokens * dv), rims.take(tokens));
    head.queries(s, &Stretch::of(rows.clone()), q);
    slopes.load(s, head, rows, (d_o, dden));
    if scan.rules.decays {
        let (e, total) = (e.take(tokens * dk), total.take(dk));
        head.factors(s, &Stretch::of(rows.clone()), e);
        total.fill(1.0);
        for (q, e) in q.chunks_exact_mut(dk).zip(e.chunks_exact(dk)) {
            multiply(s, total, e);
            multiply(s, q, total);
        }
        state::decay(s, slope, [dk, dv], total);
    }
    gather_back(s, slope, [dk, dv], (q, d_o, dden));
}

/// `dS += qᵀ dO'`, `dz += Σ dden q`.
#[inline(always)]
fn gather_back<S: Lanes>(s: S, slope: &mut [f32], [dk, dv]: [usize; 2], (q, d_o, dden): (&[f32], &[f32], &[f32])) {
    let [sums, z, _] = state::parts(slope, [dk, dv]);
    let (a, b) = (Across(Rows::new(q, dk)), Rows::new(d_o, dv));
    s.vectorize(Multiply { a, b, c: sums, stride: dv, steps: q.len() / dk, shape: Shape::Full, adds: true });
    for (row, dden) in q.chunks_exact(dk).zip(dden) {
        add(s, z, row, *dden);
    }
}

struct Back<'a> {
    scan: &'a Scan<'a>,
    cuts: &'a Cuts,
    slopes: Slopes<'a>,
    starts: Option<Sums>,
    ends: Option<Sums>,
    dq: Option<SharedRows<'a>>,
    dgates: Option<SharedRows<'a>>,
    dk: Option<SharedRows<'a>>,
    dv: Option<SharedRows<'a>>,
}

impl Job for Back<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (at, index) = (number / self.cuts.parts.len(), number % self.cuts.parts.len());
        let [b, g] = [at / self.scan.dims.kv_heads, at % self.scan.dims.kv_heads];
        let (part, [dk, dv]) = (&self.cuts.parts[index], self.scan.widths());
        let mut memory = std::mem::take(&mut forms.sums);
        let (keys, values) = memory.take(part.keys.len() * (dk + dv)).split_at_mut(part.keys.len() * dk);
        keys.fill(0.0);
        values.fill(0.0);
        let group = self.scan.dims.group();
        for h in g * group..(g + 1) * group {
            self.query_head(s, [b, h, index], [&mut *keys, &mut *values], forms);
        }
        let head = Head::new(self.scan, [b, g * group], part);
        if let Some(into) = &self.dk {
            pull_keys(s, &head, &part.keys, keys, forms);
            into.write(b, g, index, |i| &keys[i * dk..][..dk]);
        }
        if let Some(into) = &self.dv {
            into.write(b, g, index, |i| &values[i * dv..][..dv]);
        }
        forms.sums = memory;
    }
}

/// Turns gradients of features into those of the rows they were made of, some of `from [b, h]`.
struct Pull<'a> {
    scan: &'a Scan<'a>,
    from: &'a View<'a>,
    at: [usize; 2],
    rows: &'a Range<usize>,
    gradients: &'a mut [f32],
    /// That the features were scaled by.
    factor: f32,
    forms: &'a mut Forms,
}

impl Task for Pull<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Lanes, const R: usize>(self, s: S) {
        let Pull { scan, from, at: [b, h], rows, gradients, factor, forms } = self;
        let (map, [dk, _]) = (scan.rules.map, scan.widths());
        let (x, features) = forms.pulled.take(2 * dk).split_at_mut(dk);
        for (n, gradient) in rows.clone().zip(gradients.chunks_exact_mut(dk)) {
            if map != Map::Identity {
                from.widen_row(s, [b, h, n], x);
                x[scan.dims.dk..].fill(0.0);
                features.copy_from_slice(x);
                map.apply(s, features, scan.dims.dk);
                map.pull(s, x, features, gradient);
            }
            if factor != 1.0 {
                scale(s, gradient, factor);
            }
        }
    }
}

/// Turns gradients of the features of keys into those of the keys; rows of padding hold zeros.
#[inline(always)]
pub(super) fn pull_keys<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, gradients: &mut [f32], forms: &mut Forms) {
    let scan = head.scan;
    s.vectorize(Pull { scan, from: &scan.k, at: [head.b, head.g], rows, gradients, factor: 1.0, forms });
}

/// The same for queries, with the gradients in `forms.dq`.
#[inline(always)]
pub(super) fn pull_queries<S: Lanes>(s: S, head: &Head<'_>, rows: &Range<usize>, forms: &mut Forms) {
    let scan = head.scan;
    let mut memory = std::mem::take(&mut forms.dq);
    let (gradients, factor) = (memory.take(scan.rows() * scan.widths()[0]), scan.rules.scale(scan.dims.dk));
    s.vectorize(Pull { scan, from: &scan.q, at: [head.b, head.h], rows, gradients, factor, forms });
    forms.dq = memory;
}

impl Back<'_> {
    /// Adds what one query head gives to the gradients of the part's keys and values.
    #[inline(always)]
    fn query_head<S: Lanes>(&self, s: S, [b, h, part]: [usize; 3], sums: [&mut [f32]; 2], forms: &mut Forms) {
        let (scan, index, heads, [keys, values]) = (self.scan, part, self.scan.dims.heads, sums);
        let (part, size) = (&self.cuts.parts[index], state::size(scan.widths()));
        let head = Head::new(scan, [b, h], part);
        let [mut history, mut state, mut slope] = [&mut forms.history, &mut forms.state, &mut forms.slope].map(std::mem::take);
        let states = history.take(part.blocks.len() * size);
        let running = state.take(size);
        begin(s, &head, self.starts.as_ref().map(|starts| starts.get([b, h, index], heads)), running, forms);
        for (block, kept) in part.blocks.clone().zip(states.chunks_exact_mut(size)) {
            kept.copy_from_slice(running);
            let rows = head.valid(&self.cuts.blocks[block]);
            head.absorb(s, &head.sequence.beside(&rows), running, forms);
        }
        let running = slope.take(size);
        match &self.ends {
            Some(ends) => running.copy_from_slice(ends.get([b, h, index], heads)),
            None => running.fill(0.0),
        }
        for (block, state) in part.blocks.clone().zip(states.chunks_exact_mut(size)).rev() {
            let all = &self.cuts.blocks[block];
            let rows = head.valid(all);
            self.block(s, (&head, &rows), [state, &mut *running], forms);
            self.write(&Place { at: [b, h, block], all, valid: &rows }, forms);
            collect(&head, (part.keys.start, &head.sequence.beside(&rows)), [&mut *keys, &mut *values], forms);
        }
        for rows in pieces(head.sequence.before(), scan.rules.block()) {
            let rows = Stretch::of(rows);
            read_back(s, &head, &rows, running, forms);
            collect(&head, (part.keys.start, &rows), [&mut *keys, &mut *values], forms);
        }
        (forms.history, forms.state, forms.slope) = (history, state, slope);
    }

    /// Writes dq and dg of a block.
    fn write(&self, place: &Place<'_>, forms: &mut Forms) {
        let ([width, _], tokens) = (self.scan.widths(), self.scan.rows());
        let Forms { dq, dg, zeros, .. } = forms;
        for (into, from) in [(&self.dq, dq), (&self.dgates, dg)] {
            if let Some(into) = into {
                place.write(into, (from.take(tokens * width), width), zeros);
            }
        }
    }

    /// One block between the state it begins with and the gradient of that it ends with, which becomes that of the former. Leaves
    /// gradients in `forms`.
    #[inline(always)]
    fn block<S: Lanes>(&self, s: S, (head, rows): (&Head<'_>, &Range<usize>), [state, slope]: [&mut [f32]; 2], forms: &mut Forms) {
        let (scan, tokens) = (self.scan, self.scan.rows());
        let [dk, dv] = scan.widths();
        let keys = head.sequence.beside(rows);
        {
            let Forms { q, d_o, rims, turned, dq, .. } = &mut *forms;
            let (q, d_o, dden, dq) = (q.take(tokens * dk), d_o.take(tokens * dv), rims.take(tokens), dq.take(tokens * dk));
            head.queries(s, &Stretch::of(rows.clone()), q);
            self.slopes.load(s, head, rows, (d_o, dden));
            query_back(s, head, (d_o, dden), state, (turned.take(dk * dv), dq));
        }
        read_back(s, head, &keys, slope, forms);
        if scan.rules.decays {
            decayed_block(s, head, &keys, slope, forms);
        } else {
            let Forms { q, k, v, d_o, a, da, kt, vt, rims, dq, dk: d_k, dv: d_v, .. } = &mut *forms;
            let (q, k, v, d_o) = (q.get(tokens * dk), k.get(tokens * dk), v.get(tokens * dv), d_o.get(tokens * dv));
            let (a, da) = (a.take(tokens * tokens), da.take(tokens * tokens));
            let dden = rims.get(tokens);
            pair(s, [q, k], dk, (kt.take(tokens * dk), a));
            for (row, dden) in da.chunks_exact_mut(tokens).zip(dden) {
                row.fill(*dden);
            }
            pair_adding(s, [d_o, v], dv, (vt.take(tokens * dv), da));
            let product = (Rows::new(k, dk), dq.take(tokens * dk));
            lower(s, da, product, tokens);
            upper(s, da, (Rows::new(q, dk), d_k.take(tokens * dk)), tokens);
            upper(s, a, (Rows::new(d_o, dv), d_v.take(tokens * dv)), tokens);
            gather_back(s, slope, [dk, dv], (q, d_o, dden));
        }
        pull_queries(s, head, rows, forms);
    }
}

/// `a = x yᵀ`, lower triangle.
#[inline(always)]
fn pair<S: Lanes>(s: S, [x, y]: [&[f32]; 2], width: usize, (turned, a): (&mut [f32], &mut [f32])) {
    let tokens = x.len() / width;
    s.vectorize(Turn { from: y, into: turned, size: [tokens, width] });
    let (left, right) = (Along(Rows::new(x, width)), Rows::new(turned, tokens));
    s.vectorize(Multiply { a: left, b: right, c: a, stride: tokens, steps: width, shape: Shape::LowerResult, adds: false });
    clear_above(a, tokens);
}

/// `a += x yᵀ`, of which the lower triangle is kept.
#[inline(always)]
fn pair_adding<S: Lanes>(s: S, [x, y]: [&[f32]; 2], width: usize, (turned, a): (&mut [f32], &mut [f32])) {
    let tokens = x.len() / width;
    s.vectorize(Turn { from: y, into: turned, size: [tokens, width] });
    let (left, right) = (Along(Rows::new(x, width)), Rows::new(turned, tokens));
    s.vectorize(Multiply { a: left, b: right, c: a, stride: tokens, steps: width, shape: Shape::LowerResult, adds: true });
    clear_above(a, tokens);
}

/// `c += a b` for a lower triangle a.
#[inline(always)]
fn lower<S: Lanes>(s: S, a: &[f32], (b, c): (Rows<'_>, &mut [f32]), tokens: usize) {
    let a = Along(Rows::new(a, tokens));
    s.vectorize(Multiply { a, b, c, stride: b.stride, steps: tokens, shape: Shape::Lower, adds: true });
}

/// `c += aᵀ b` for a lower triangle a.
#[inline(always)]
fn upper<S: Lanes>(s: S, a: &[f32], (b, c): (Rows<'_>, &mut [f32]), tokens: usize) {
    let a = Across(Rows::new(a, tokens));
    s.vectorize(Multiply { a, b, c, stride: b.stride, steps: tokens, shape: Shape::Upper, adds: true });
}

/// `dq = dO' Sᵀ + dden z`.
#[inline(always)]
pub(super) fn query_back<S: Lanes>(
    s: S,
    head: &Head<'_>,
    (d_o, dden): (&[f32], &[f32]),
    state: &mut [f32],
    (turned, dq): (&mut [f32], &mut [f32]),
) {
    let (scan, [dk, dv]) = (head.scan, head.scan.widths());
    let [sums, z, _] = state::parts(state, [dk, dv]);
    s.vectorize(Turn { from: sums, into: turned, size: [dk, dv] });
    let (a, b) = (Along(Rows::new(d_o, dv)), Rows::new(turned, dk));
    s.vectorize(Multiply { a, b, c: dq, stride: dk, steps: scan.dims.dv, shape: Shape::Full, adds: false });
    for (row, dden) in dq.chunks_exact_mut(dk).zip(dden) {
        add(s, row, z, *dden);
    }
}

/// Keys and values into `forms`, and `dk = v dSᵀ + dz`, `dv = k dS`; with gates dv is left to whoever decays the keys.
#[inline(always)]
pub(super) fn read_back<S: Lanes>(s: S, head: &Head<'_>, rows: &Stretch, slope: &mut [f32], forms: &mut Forms) {
    let (scan, tokens) = (head.scan, head.scan.rows());
    let [dk, dv] = scan.widths();
    let Forms { k, v, dk: d_k, dv: d_v, slope_turned, .. } = forms;
    let (k, v) = (k.take(tokens * dk), v.take(tokens * dv));
    head.keys(s, rows, k);
    head.values(s, rows, v);
    let (d_k, d_v) = (d_k.take(tokens * dk), d_v.take(tokens * dv));
    let [sums, z, _] = state::parts(slope, [dk, dv]);
    let turned = slope_turned.take(dk * dv);
    s.vectorize(Turn { from: sums, into: turned, size: [dk, dv] });
    let (a, b) = (Along(Rows::new(v, dv)), Rows::new(turned, dk));
    s.vectorize(Multiply { a, b, c: d_k, stride: dk, steps: scan.dims.dv, shape: Shape::Full, adds: false });
    if scan.rules.decays {
        return;
    }
    for row in d_k.chunks_exact_mut(dk) {
        add(s, row, z, 1.0);
    }
    let (a, b) = (Along(Rows::new(k, dk)), Rows::new(sums, dv));
    s.vectorize(Multiply { a, b, c: d_v, stride: dv, steps: scan.dims.dk, shape: Shape::Full, adds: false });
}

/// Adds the gradients of a block's keys and values to those of the part, whose first key is `first`.
#[inline(always)]
fn collect(head: &Head<'_>, (first, rows): (usize, &Stretch), sums: [&mut [f32]; 2], forms: &mut Forms) {
    let tokens = head.scan.rows();
    for ((into, from), width) in sums.into_iter().zip([&forms.dk, &forms.dv]).zip(head.scan.widths()) {
        let from = &from.get(tokens * width)[rows.lead * width..][..rows.rows.len() * width];
        let into = &mut into[(rows.rows.start - first) * width..][..from.len()];
        into.iter_mut().zip(from).for_each(|(into, x)| *into += x);
    }
}

/// The rest of a block with gates: `forms.dq` holds dO Sᵀ and `forms.dk` v dSᵀ, `forms.turned` and `forms.slope_turned` Sᵀ and dSᵀ.
#[inline(always)]
fn decayed_block<S: Lanes>(s: S, head: &Head<'_>, rows: &Stretch, slope: &mut [f32], forms: &mut Forms) {
    let (scan, tokens) = (head.scan, head.scan.rows());
    let [dk, dv] = scan.widths();
    let Forms { q, k, v, e, d_o, a, da, kt, vt, dq, dk: d_k, dv: d_v, dg, total, rims, turned, slope_turned, row, .. } = forms;
    let (q, k, v, d_o) = (q.take(tokens * dk), k.take(tokens * dk), v.get(tokens * dv), d_o.get(tokens * dv));
    let (e, total) = (e.take(tokens * dk), total.take(dk));
    head.factors(s, rows, e);
    let (a, da) = (a.take(tokens * tokens), da.take(tokens * tokens));
    da.fill(0.0);
    for i in 0..tokens {
        for j in 0..=i {
            da[i * tokens + j] = dot(s, &d_o[i * dv..][..dv], &v[j * dv..][..dv]);
        }
    }
    // As they come in: q and k themselves, and gradients of pairs that are not a token with itself.
    let (plain_q, inner_q) = kt.take(2 * tokens * dk).split_at_mut(tokens * dk);
    let (plain_k, inner_k) = vt.take(2 * tokens * dk).split_at_mut(tokens * dk);
    plain_q.copy_from_slice(q);
    plain_k.copy_from_slice(k);
    Decayed { q, k, e, total }.meet_back(s, [a, da], [inner_q, inner_k]);
    let (d_v, own) = (d_v.take(tokens * dv), Along(Rows::new(k, dk)));
    let [sums, ..] = state::parts(slope, [dk, dv]);
    let b = Rows::new(sums, dv);
    s.vectorize(Multiply { a: own, b, c: d_v, stride: dv, steps: scan.dims.dk, shape: Shape::Full, adds: false });
    upper(s, a, (Rows::new(d_o, dv), &mut *d_v), tokens);
    let shares = Shares {
        q,
        k,
        e,
        plain: [plain_q, plain_k],
        inner: [inner_q, inner_k],
        da,
        dq: dq.take(tokens * dk),
        dk: d_k.take(tokens * dk),
        dg: dg.take(tokens * dk),
    };
    shares.across(s, [turned.get(dk * dv), slope_turned.get(dk * dv)], total, row.take(dk));
    state::decay(s, slope, [dk, dv], total);
    gather_back(s, slope, [dk, dv], (q, d_o, rims.get(tokens)));
}

/// Gradients of a block's queries, keys and gates, from those through the state and those of pairs.
struct Shares<'a> {
    /// Queries and keys as the states read them.
    q: &'a [f32],
    k: &'a [f32],
    e: &'a [f32],
    plain: [&'a [f32]; 2],
    inner: [&'a [f32]; 2],
    da: &'a [f32],
    dq: &'a mut [f32],
    dk: &'a mut [f32],
    dg: &'a mut [f32],
}

impl Shares<'_> {
    #[inline(always)]
    fn across<S: Lanes>(self, s: S, [state, slope]: [&[f32]; 2], total: &[f32], sum: &mut [f32]) {
        let Shares { q, k, e, plain, inner, da, dq, dk, dg } = self;
        let (width, tokens) = (total.len(), q.len() / total.len());
        let row = |i: usize| i * width..(i + 1) * width;
        sum.fill(0.0);
        for (x, y) in state.chunks_exact(width).zip(slope.chunks_exact(width)) {
            add_product(s, sum, [x, y], 1.0);
        }
        multiply(s, sum, total);
        for i in 0..tokens {
            dg[row(i)].copy_from_slice(sum);
            add_product(s, sum, [&k[row(i)], &dk[row(i)]], 1.0);
        }
        sum.fill(0.0);
        for i in (0..tokens).rev() {
            add_product(s, sum, [&q[row(i)], &dq[row(i)]], 1.0);
            add_product(s, sum, [&plain[0][row(i)], &inner[0][row(i)]], 1.0);
            add_product(s, sum, [&plain[1][row(i)], &inner[1][row(i)]], -1.0);
            add(s, &mut dg[row(i)], sum, 1.0);
        }
        sum.fill(1.0);
        for i in 0..tokens {
            multiply(s, sum, &e[row(i)]);
            multiply(s, &mut dq[row(i)], sum);
            add(s, &mut dq[row(i)], &inner[0][row(i)], 1.0);
            add(s, &mut dq[row(i)], &plain[1][row(i)], da[i * tokens + i]);
        }
        sum.fill(1.0);
        for i in (0..tokens).rev() {
            multiply(s, &mut dk[row(i)], sum);
            multiply(s, sum, &e[row(i)]);
            add(s, &mut dk[row(i)], &inner[1][row(i)], 1.0);
            add(s, &mut dk[row(i)], &plain[0][row(i)], da[i * tokens + i]);
        }
    }
}

/// `into += factor · x ∘ y`.
#[inline(always)]
fn add_product<S: Lanes>(s: S, into: &mut [f32], [x, y]: [&[f32]; 2], factor: f32) {
    let factor = s.splat(factor);
    for ((to, x), y) in into.chunks_exact_mut(S::N).zip(x.chunks_exact(S::N)).zip(y.chunks_exact(S::N)) {
        s.store(to, s.mul_add(s.mul(factor, s.load(x)), s.load(y), s.load(to)));
    }
}
