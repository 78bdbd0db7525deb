//! Token by token: a state for every kv head, or with gates for every query head; in a window a ring of its keys and values.

use super::block::{Forms, How, Load};
use super::job::{self, Job};
use super::plan::Stretch;
use super::tiles::{add, dot, scale};
use super::{PANEL, Rules, block, state};
use crate::simd::Lanes;
use crate::view::{DisjointRows, SharedRows, StridedMut, View};
use crate::{Output, Par};

/// What is remembered of one sequence.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    rules: Rules,
    /// Of states or rings.
    heads: usize,
    /// Width of keys, width of values.
    widths: [usize; 2],
    tokens: usize,
    /// States, or rings of keys and values, head by head.
    values: Vec<f32>,
}

/// Tokens with their tensors, `[1, G, T, D]`; gates `[1, H, T, Dk]`.
#[derive(Clone, Copy)]
pub(crate) struct Coming<'a> {
    pub(crate) k: View<'a>,
    pub(crate) v: View<'a>,
    pub(crate) gates: Option<View<'a>>,
}

impl Running {
    /// Of no tokens.
    pub(crate) fn new(rules: Rules, heads: usize, widths: [usize; 2]) -> Self {
        let padded = widths.map(|width| width.next_multiple_of(PANEL));
        let values = if rules.window.is_some() { Vec::new() } else { vec![0.0; heads * state::size(padded)] };
        Running { rules, heads, widths, tokens: 0, values }
    }

    /// Heads of states, width of keys, width of values.
    pub(crate) fn shape(&self) -> [usize; 3] {
        [self.heads, self.widths[0], self.widths[1]]
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.values[..])
    }

    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    fn padded(&self) -> [usize; 2] {
        self.widths.map(|width| width.next_multiple_of(PANEL))
    }

    /// Numbers of a head.
    fn size(&self) -> usize {
        self.values.len() / self.heads
    }

    /// Numbers of a key and a value in a ring.
    fn entry(&self) -> usize {
        self.padded().iter().sum()
    }

    /// Keys that the rings have room for.
    fn room(&self) -> usize {
        self.size() / self.entry()
    }

    /// Makes room for so many more tokens, doubling up to the window.
    fn reserve(&mut self, count: usize) {
        let Some(window) = self.rules.window else { return };
        let (room, needed) = (self.room(), self.tokens.saturating_add(count).min(window));
        if needed <= room {
            return;
        }
        let larger = (2 * room).max(64).max(needed).min(window) * self.entry();
        let mut values = vec![0.0; self.heads * larger];
        if room > 0 {
            for (to, from) in values.chunks_mut(larger).zip(self.values.chunks(room * self.entry())) {
                to[..from.len()].copy_from_slice(from);
            }
        }
        self.values = values;
    }

    /// Takes in tokens; shapes are checked.
    pub(crate) fn prefill(&mut self, coming: Coming<'_>, par: Par) {
        let count = coming.k.shape()[2];
        self.run((coming, count), None, par);
    }

    /// Takes in one token and reads with its queries `[1, H, 1, Dk]`.
    pub(crate) fn step(&mut self, coming: Coming<'_>, q: View<'_>, out: &mut Output<'_>, par: Par) {
        let one = 0..1;
        let o = out.o.share(std::slice::from_ref(&one));
        self.run((coming, 1), Some((q, &o)), par);
    }

    fn run(&mut self, (coming, count): (Coming<'_>, usize), reading: Option<(View<'_>, &SharedRows<'_>)>, par: Par) {
        self.reserve(count);
        let (heads, size, before) = (self.heads, self.size(), self.tokens);
        let mut values = std::mem::take(&mut self.values);
        {
            let mut rows = StridedMut::contiguous(&mut values, [1, heads, 1, size], "state").expect("its own size");
            let one = 0..1;
            let states = DisjointRows::new(&mut rows, std::slice::from_ref(&one));
            let advance = Advance { running: self, before, count, coming, reading, states, room: size / self.entry() };
            job::run(&advance, heads, 4.0 * (heads * size * count) as f64, par);
        }
        self.values = values;
        self.tokens += count;
    }
}

struct Advance<'a> {
    running: &'a Running,
    before: usize,
    count: usize,
    coming: Coming<'a>,
    reading: Option<(View<'a>, &'a SharedRows<'a>)>,
    states: DisjointRows<'a, f32>,
    room: usize,
}

impl Job for Advance<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, number: usize, forms: &mut Forms) {
        let (rules, [dk, dv]) = (self.running.rules, self.running.padded());
        let (k, v, e) = (forms.k.take(dk), forms.v.take(dv), forms.e.take(dk));
        let mut claim = self.states.claim(0, number, 0);
        let state = claim.row(0);
        let g = number * self.coming.k.shape()[1] / self.running.heads;
        for t in 0..self.count {
            let row = &Stretch::of(t..t + 1);
            let how = How { map: Some(rules.map), ..How::plain(dk) };
            s.vectorize(Load { from: &self.coming.k, at: [0, g], rows: row, into: &mut *k, how });
            block::load(s, &self.coming.v, [0, g], row, v, dv);
            if let Some(window) = rules.window {
                let slot = (self.before + t) % window;
                let entry = &mut state[slot * (dk + dv)..][..dk + dv];
                entry[..dk].copy_from_slice(k);
                entry[dk..].copy_from_slice(v);
                continue;
            }
            let gates = self.coming.gates.filter(|_| rules.decays);
            if let Some(gates) = &gates {
                let how = How { exponential: true, ..How::plain(dk) };
                s.vectorize(Load { from: gates, at: [0, number], rows: row, into: &mut *e, how });
            }
            state::take_in(s, state, gates.is_some().then_some(&*e), (k, v));
        }
        let Some((q, o)) = &self.reading else { return };
        let group = q.shape()[1] / self.running.heads;
        for h in number * group..(number + 1) * group {
            self.read(s, h, (q, o), state, forms);
        }
    }
}

impl Advance<'_> {
    #[inline(always)]
    fn read<S: Lanes>(&self, s: S, h: usize, (q, into): (&View<'_>, &SharedRows<'_>), state: &mut [f32], forms: &mut Forms) {
        let (rules, [dk, dv]) = (self.running.rules, self.running.padded());
        let (row, o) = (forms.q.take(dk), forms.o.take(dv));
        let how = How { width: dk, map: Some(rules.map), factor: rules.scale(self.running.widths[0]), exponential: false };
        s.vectorize(Load { from: q, at: [0, h], rows: &Stretch::of(0..1), into: &mut *row, how });
        let denominator = if rules.window.is_some() {
            let held = (self.before + self.count).min(self.room) * (dk + dv);
            read_ring(s, &state[..held], row, o)
        } else {
            state::read(s, state, row, o)
        };
        if let Some(epsilon) = rules.epsilon {
            scale(s, o, block::inverse(denominator, epsilon));
        }
        into.write(0, h, 0, |_| &*o);
    }
}

/// Sums over the keys and values of a ring; gives the sum of their weights.
#[inline(always)]
fn read_ring<S: Lanes>(s: S, entries: &[f32], q: &[f32], o: &mut [f32]) -> f32 {
    let mut sum = 0.0;
    o.fill(0.0);
    for entry in entries.chunks_exact(q.len() + o.len()) {
        let weight = dot(s, q, &entry[..q.len()]);
        add(s, o, &entry[q.len()..], weight);
        sum += weight;
    }
    sum
}
