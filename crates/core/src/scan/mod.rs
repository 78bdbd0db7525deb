//! Attention whose past is a sum: a running state instead of a softmax.
//!
//! With `f = φ(k_j)` and `φ(q_i)` (or the keys and queries themselves, the latter times a scale) and a state `S [Dk,Dv]`, `z [Dk]` per head:
//!
//! ```text
//! S_i = diag(e^{g_i}) S_{i-1} + f_i v_iᵀ      z_i = z_{i-1} + f_i      o_i = S_iᵀ φ(q_i) / (z_i·φ(q_i) + ε)
//! ```
//!
//! Gates g and the division are optional, and not both are there. Tokens go by in blocks: those of one block meet pair by pair, what came
//! before is read from the state, whose update is one product. Gates decay pairs of a block by products of factors `e^g ≤ 1`, never by
//! quotients of cumulated ones: they neither overflow nor cancel, and underflow to the zero that the weight then is. The backward pass
//! keeps a state for every [`PART`] tokens and computes those between anew.
//!
//! Without causality there is one sum for all queries; in a window there is no state, blocks of queries meet those of keys.
//! Time `O(N (block + Dk) Dv)`, in a window `O(N w (Dk + Dv))`. Katharopoulos et al. 2020; Yang et al. 2024 (gates, chunks).

mod backward;
mod block;
mod decay;
mod features;
mod forward;
mod job;
mod near;
mod plan;
mod running;
mod state;
mod sums;
mod tiles;
mod whole;

pub use features::Map;
pub(crate) use running::{Coming, Running};

use crate::problem::expect;
use crate::simd::Lanes;
use crate::view::View;
use crate::{Alignment, Dims, Error, Gradients, Output, Par, Problem, Saved, ViewMut};
use block::Forms;
use job::Job;
use plan::Sequence;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Widths of working forms are multiples of this: two registers of any level.
const PANEL: usize = 32;
/// Most tokens of a block.
const LARGEST: usize = 128;
/// The same where pairs decay one by one.
const LARGEST_DECAYED: usize = 16;

/// What the options of a mechanism come to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rules {
    /// The mechanism, for messages.
    pub(crate) name: &'static str,
    pub(crate) map: Map,
    /// Tokens of a block, as wished.
    pub(crate) chunk: usize,
    /// Added to the denominator, where there is one.
    pub(crate) epsilon: Option<f32>,
    /// Keys in the window.
    pub(crate) window: Option<usize>,
    /// Whether there are gates.
    pub(crate) decays: bool,
    /// On queries; with gates `1/√Dk` if absent, without them 1.
    pub(crate) scale: Option<f32>,
}

impl Rules {
    /// Tokens of a block.
    pub(crate) fn block(&self) -> usize {
        self.chunk.clamp(1, if self.decays { LARGEST_DECAYED } else { LARGEST })
    }

    pub(crate) fn scale(&self, dk: usize) -> f32 {
        let default = if self.decays { 1.0 / (dk as f32).sqrt() } else { 1.0 };
        self.scale.unwrap_or(default)
    }
}

/// Which keys a query reads.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reach {
    /// Those at its position and before.
    Past,
    /// All.
    Whole,
    /// Those at most so far to the left and to the right.
    Near([usize; 2]),
}

/// Which keys the queries of a call see.
#[derive(Debug, Clone)]
pub(crate) struct Visible {
    sequences: Vec<Sequence>,
    reach: Reach,
}

impl Visible {
    /// The key rows that a query row sees.
    pub(crate) fn keys(&self, b: usize, query: usize) -> Vec<usize> {
        let holds = |sequence: &&Sequence| sequence.batch == b && sequence.queries.contains(&query);
        self.sequences.iter().find(holds).map_or_else(Vec::new, |sequence| {
            let behind = |key: usize| sequence.position(query) - (key - sequence.keys.start) as isize;
            let sees = |key: &usize| match self.reach {
                Reach::Whole => true,
                Reach::Past => behind(*key) >= 0,
                Reach::Near([left, right]) => {
                    let [left, right] = [left, right].map(|reach| reach.min(isize::MAX as usize) as isize);
                    (-right..=left).contains(&behind(*key))
                }
            };
            sequence.keys.clone().filter(sees).collect()
        })
    }
}

/// One call, checked.
#[derive(Debug, Clone)]
pub(crate) struct Scan<'a> {
    q: View<'a>,
    k: View<'a>,
    v: View<'a>,
    gates: Option<View<'a>>,
    rules: Rules,
    dims: Dims,
    /// Batch rows, or packed sequences.
    sequences: Vec<Sequence>,
    packed: bool,
    reach: Reach,
}

impl<'a> Scan<'a> {
    /// Checks what the problem did not.
    ///
    /// # Errors
    /// If there is a rule that no state can keep, or gates and queries do not fit one another.
    pub(crate) fn new(rules: Rules, problem: &Problem<'a>, gates: Option<View<'a>>) -> Result<Self, Error> {
        let (sight, dims, name) = (&problem.sight, problem.dims, rules.name);
        let windowed = sight.left.is_some() || sight.right.is_some() || sight.sinks > 0 || sight.until.is_some();
        if windowed || sight.mask.is_some() || sight.spans.is_some() || sight.positions.is_some() {
            return Err(Error::Combination(format!(
                "{name} takes no mask, window, sinks, until, key_spans or key_positions from its caller"
            )));
        }
        if sight.alignment == Alignment::TopLeft {
            return Err(Error::Combination(format!("{name} has no top_left alignment")));
        }
        let of = |s| {
            let scope = sight.scope(&dims, s, 0);
            Sequence { batch: scope.batch, queries: scope.queries, keys: scope.keys }
        };
        let sequences: Vec<Sequence> = (0..sight.sequences(&dims)).map(of).collect();
        let reach = match (rules.window, sight.is_causal()) {
            (Some(window), causal) => Reach::Near([window - 1, if causal { 0 } else { window - 1 }]),
            (None, true) => Reach::Past,
            (None, false) => Reach::Whole,
        };
        let scan = Scan { q: problem.q, k: problem.k, v: problem.v, gates, rules, dims, sequences, packed: sight.offsets.is_some(), reach };
        scan.check_gates()?;
        Ok(scan)
    }

    fn check_gates(&self) -> Result<(), Error> {
        let (Dims { batch, heads, queries, keys, dk, .. }, name) = (self.dims, self.rules.name);
        let Some(gates) = self.gates.filter(|_| self.rules.decays) else {
            let missing = || Error::Combination(format!("{name} needs gates, one of every query head's key channels, [B, H, N, Dk]"));
            return if self.rules.decays { Err(missing()) } else { Ok(()) };
        };
        if queries != keys {
            return Err(Error::Combination(format!("{name} needs N = M, found {queries} queries and {keys} keys")));
        }
        if let Some(sequence) = self.sequences.iter().find(|sequence| sequence.queries != sequence.keys) {
            let message = format!("{name} needs N = M, found query rows {:?} and key rows {:?}", sequence.queries, sequence.keys);
            return Err(Error::Combination(message));
        }
        expect("gates", gates.shape(), [batch, heads, queries, dk])
    }

    pub(crate) fn dims(&self) -> Dims {
        self.dims
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    pub(crate) fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Which keys queries see, without the tensors.
    pub(crate) fn visible(&self) -> Visible {
        Visible { sequences: self.sequences.clone(), reach: self.reach }
    }

    pub(crate) fn views(&self) -> [View<'a>; 3] {
        [self.q, self.k, self.v]
    }

    pub(crate) fn gates(&self) -> Option<View<'a>> {
        self.gates
    }

    /// Pairs of queries and keys that would cost as much: those that meet, and what reading and writing the state comes to.
    pub(crate) fn pairs(&self) -> u64 {
        let of = |sequence: &Sequence| -> u64 {
            let (queries, keys, state) =
                (sequence.queries.len(), sequence.keys.len(), self.dims.dk * self.dims.dv / (self.dims.dk + self.dims.dv));
            (match self.reach {
                Reach::Near([left, right]) => queries * keys.min(left + right + 1),
                Reach::Past => queries * self.rules.block().div_ceil(2).min(keys) + (queries + keys) * state.max(1),
                Reach::Whole => (queries + keys) * state.max(1),
            }) as u64
        };
        self.sequences.iter().map(of).sum::<u64>() * self.dims.heads as u64
    }

    /// Floating-point operations of a forward pass; decides about threads only.
    fn flops(&self) -> f64 {
        2.0 * self.pairs() as f64 * (self.dims.dk + self.dims.dv) as f64
    }

    /// Widths of keys and of values in working form.
    fn widths(&self) -> [usize; 2] {
        [self.dims.dk, self.dims.dv].map(|width| width.next_multiple_of(PANEL))
    }

    /// Rows of a block in working form.
    fn rows(&self) -> usize {
        self.rules.block().next_multiple_of(if self.rules.decays { 8 } else { PANEL })
    }

    /// The first gate that is not at most 0, if there is one.
    ///
    /// # Errors
    /// Naming it.
    pub(crate) fn refuse_growth(&self, par: Par) -> Result<(), Error> {
        let Some(gates) = self.gates else { return Ok(()) };
        let [batch, heads, tokens, width] = gates.shape();
        let growth = Growth { gates, first: AtomicUsize::new(usize::MAX) };
        job::run(&growth, batch * heads, (batch * heads * tokens * width) as f64, par);
        let at = growth.first.into_inner();
        if at == usize::MAX {
            return Ok(());
        }
        let place = [at / width / tokens / heads, at / width / tokens % heads, at / width % tokens, at % width];
        Err(Error::value("gates", format!("{} at {place:?}: logarithms of gates are numbers of at most 0", gates.at(place))))
    }

    /// `o`; `lse` is left as it is.
    ///
    /// # Errors
    /// If an output does not fit.
    pub(crate) fn forward(&self, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        out.check(&self.dims, self.q.dtype())?;
        match self.reach {
            Reach::Past => forward::run(self, &mut out.o, par),
            Reach::Whole => whole::forward(self, &mut out.o, par),
            Reach::Near(reach) => near::forward(self, reach, &mut out.o, par),
        }
        Ok(())
    }

    /// Gradients of q, k, v and gates, as far as they are asked for; `lse` is not read.
    ///
    /// # Errors
    /// If a saved value or a gradient does not fit, or biases are asked for.
    pub(crate) fn backward<'b>(
        &self,
        saved: &Saved<'_>,
        (heads, dgates): (&mut Gradients<'b>, Option<&mut ViewMut<'b>>),
        par: Par,
    ) -> Result<(), Error> {
        saved.check(&self.dims)?;
        heads.check(&self.dims, None)?;
        if heads.dkey_bias.is_some() || heads.dbias.is_some() {
            return Err(Error::Combination(format!("{} has gradients of no bias", self.rules.name)));
        }
        if let Some(dgates) = &dgates {
            let Dims { batch, heads, queries, dk, .. } = self.dims;
            expect("dgates", dgates.shape(), [batch, heads, queries, dk])?;
        }
        let wanted = Wanted { dq: heads.dq.as_mut(), dk: heads.dk.as_mut(), dv: heads.dv.as_mut(), dgates };
        match self.reach {
            Reach::Past => backward::run(self, saved, wanted, par),
            Reach::Whole => whole::backward(self, saved, wanted, par),
            Reach::Near(reach) => near::backward(self, (saved, reach), wanted, par),
        }
        Ok(())
    }
}

/// Where gradients go.
struct Wanted<'a, 'b> {
    dq: Option<&'a mut ViewMut<'b>>,
    dk: Option<&'a mut ViewMut<'b>>,
    dv: Option<&'a mut ViewMut<'b>>,
    dgates: Option<&'a mut ViewMut<'b>>,
}

/// Looks for gates above 0.
struct Growth<'a> {
    gates: View<'a>,
    first: AtomicUsize,
}

impl Job for Growth<'_> {
    #[inline(always)]
    fn run<S: Lanes, const R: usize>(&self, s: S, head: usize, forms: &mut Forms) {
        let [_, heads, tokens, width] = self.gates.shape();
        let row = forms.q.take(width.next_multiple_of(S::N));
        row.fill(0.0);
        for n in 0..tokens {
            self.gates.widen_row(s, [head / heads, head % heads, n], row);
            let mut bad = false;
            for x in row.chunks_exact(S::N) {
                bad |= s.any_not_at_most(s.load(x), s.zero());
            }
            if bad {
                let at = row.iter().position(|gate| gate.is_nan() || *gate > 0.0).unwrap_or_default();
                self.first.fetch_min((head * tokens + n) * width + at, Ordering::Relaxed);
                return;
            }
        }
    }
}
