//! Logits of one register tile: `R` keys by one or two registers of queries, in units of log2.
//!
//! `scale·log2 e` is folded into Q, so that the product needs only its offset (minus the running maximum, or minus the
//! log-sum-exp in the backward pass) to be ready for `exp2`; pairs of bf16 are multiplied as they are, and scaled with the offset. The sum starts at 0, or at the key's bias, and takes the offset
//! last: starting at the offset would save an operation and cost the bits that partial sums of that size lose. Soft-cap,
//! ALiBi and dense biases come after the product.

use super::dropout::Mask;
use super::plan::Facts;
use crate::Problem;
use crate::simd::{Along, Form, Lanes, Rows, Singles, product};
use std::f32::consts::LOG2_E;
use std::marker::PhantomData;

/// Which parts of a score a loop is compiled with.
pub(super) trait Variant {
    /// What a lane of the operands of products holds.
    type Form: Form;
    /// Keys are hidden from single lanes.
    const MASKED: bool;
    /// Keys have biases.
    const BIASED: bool;
    /// Soft-cap, ALiBi, dense bias or mask, dropout: whatever the problem has.
    const RICH: bool;
}

macro_rules! variants {
    ($($name:ident: $masked:literal $biased:literal $rich:literal;)+) => {
        $(pub(super) struct $name;
        impl Variant for $name {
            type Form = Singles;
            const MASKED: bool = $masked;
            const BIASED: bool = $biased;
            const RICH: bool = $rich;
        })+
    };
}

variants! {
    Plain: false false false;
    Masked: true false false;
    Biased: false true false;
    MaskedBiased: true true false;
    Rich: true true true;
}

/// A variant over operands of some form.
pub(super) struct Of<M, V>(PhantomData<(M, V)>);

impl<M: Form, V: Variant> Variant for Of<M, V> {
    type Form = M;
    const MASKED: bool = V::MASKED;
    const BIASED: bool = V::BIASED;
    const RICH: bool = V::RICH;
}

/// The parts of a score that are the same for all tiles of a query head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extras {
    /// Some key has a bias.
    pub(super) biased: bool,
    /// Anything that needs [`Rich`].
    pub(super) rich: bool,
    /// `(1/cap, cap·log2 e)`.
    softcap: Option<(f32, f32)>,
    /// ALiBi's slope in units of log2; 0 without.
    slope: f32,
    /// What products are multiplied by: it is folded into Q where that is held in f32.
    pub(super) factor: f32,
    /// A dense bias or mask fills the panel's table.
    pub(super) dense: bool,
    /// See [`Mask`].
    pub(super) dropout: Option<Mask>,
}

impl Extras {
    pub(super) fn new(problem: &Problem<'_>, h: usize) -> Self {
        let dense = problem.bias().is_some() || problem.dense_mask().is_some();
        let softcap = problem.softcap().map(|cap| (1.0 / cap, cap * LOG2_E));
        let dropout = problem.dropout().map(Mask::new);
        Extras {
            biased: problem.key_bias(0, 0).is_some(),
            rich: dense || softcap.is_some() || dropout.is_some() || problem.has_alibi(),
            softcap,
            slope: problem.slope(h),
            factor: if softcap.is_some() { problem.scale() } else { problem.scale() * LOG2_E },
            dense,
            dropout,
        }
    }
}

/// One panel of queries against one block of keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meeting<'a> {
    /// Rows of K, from the block's first key.
    pub(super) k: Rows<'a>,
    /// Transposed queries `[Dk][2·N]`, scaled.
    pub(super) qt: &'a [f32],
    /// Width of q and k.
    pub(super) dk: usize,
    /// What is known of the keys.
    pub(super) facts: &'a Facts,
    /// Position of each query of the panel, `[2·N]`.
    pub(super) positions: &'a [i32],
    /// Dropout's hash of each query, `[2·N]`; empty without dropout.
    pub(super) hashes: &'a [i32],
    /// Dense bias in units of log2, `[key][2·N]`, -inf where masked; empty without.
    pub(super) dense: &'a [f32],
    /// What all tiles share.
    pub(super) extras: &'a Extras,
    /// Row of the first key of the sequence: dropout counts keys from there.
    pub(super) origin: usize,
}

/// A tile of values: `R` keys by `C` registers of queries.
pub(super) type Tile<S, const R: usize, const C: usize> = [[<S as Lanes>::F; C]; R];

impl Meeting<'_> {
    /// `s·log2 e + offset` of the keys of one tile and the registers of the panel from `from` on; with a soft-cap also
    /// `1 - tanh²`, the slope of the cap.
    #[inline(always)]
    pub(super) fn logits<S: Lanes, const R: usize, const C: usize, V: Variant>(
        &self,
        s: S,
        (tile, from): (usize, usize),
        offset: [S::F; C],
    ) -> (Tile<S, R, C>, Option<Tile<S, R, C>>) {
        let key = tile * R;
        let k = V::Form::left(Along(self.k.from(key)));
        let qt = Rows::new(&self.qt[from * S::N..], 2 * S::N);
        let (steps, folded) = (V::Form::rows(self.dk), V::Form::PER_LANE == 1);
        let mut start = [[s.zero(); C]; R];
        if V::BIASED && folded && !V::RICH {
            for (row, bias) in start.iter_mut().zip(&self.facts.bias[key..key + R]) {
                *row = [s.splat(*bias); C];
            }
        }
        let mut x = product::<S, _, R, C>(s, start, k, qt, steps);
        if !V::RICH {
            for (r, row) in x.iter_mut().enumerate() {
                for (value, offset) in row.iter_mut().zip(offset) {
                    *value = match (folded, V::BIASED) {
                        (true, _) => s.add(*value, offset),
                        (false, false) => s.mul_add(*value, s.splat(self.extras.factor), offset),
                        (false, true) => {
                            let biased = s.mul_add(*value, s.splat(self.extras.factor), s.splat(self.facts.bias[key + r]));
                            s.add(biased, offset)
                        }
                    };
                }
            }
            return (x, None);
        }
        if !folded {
            for value in x.as_flattened_mut() {
                *value = s.mul(*value, s.splat(self.extras.factor));
            }
        }
        let slopes = match self.extras.softcap {
            Some(cap) => Some(self.cap::<S, R, C>(s, cap, &mut x)),
            None => None,
        };
        for (r, row) in x.iter_mut().enumerate() {
            for (c, value) in row.iter_mut().enumerate() {
                let biased = s.add(*value, s.splat(self.facts.bias[key + r]));
                *value = s.add(self.add_rich(s, biased, key + r, from + c), offset[c]);
            }
        }
        (x, slopes)
    }

    #[inline(always)]
    fn cap<S: Lanes, const R: usize, const C: usize>(&self, s: S, (inverse, height): (f32, f32), x: &mut Tile<S, R, C>) -> Tile<S, R, C> {
        let mut slopes = *x;
        for (row, slope_row) in x.iter_mut().zip(&mut slopes) {
            for (value, slope) in row.iter_mut().zip(slope_row) {
                let t = s.tanh(s.mul(*value, s.splat(inverse)));
                *value = s.mul(t, s.splat(height));
                *slope = s.sub(s.splat(1.0), s.mul(t, t));
            }
        }
        slopes
    }

    #[inline(always)]
    fn add_rich<S: Lanes>(&self, s: S, mut x: S::F, key: usize, c: usize) -> S::F {
        if self.extras.slope != 0.0 {
            let positions = s.load_i(&self.positions[c * S::N..]);
            let distance = s.to_float(s.sub_i(positions, s.splat_i(self.facts.position[key])));
            let distance = s.max(distance, s.sub(s.zero(), distance));
            x = s.mul_add(s.splat(-self.extras.slope), distance, x);
        }
        if self.extras.dense {
            x = s.add(x, s.load(&self.dense[(key * 2 + c) * S::N..]));
        }
        x
    }

    /// `value` in the lanes that see key `key` of the block, 0 in the others, whatever it is there.
    #[inline(always)]
    pub(super) fn keep<S: Lanes, V: Variant>(&self, s: S, key: usize, c: usize, value: S::F) -> S::F {
        if !V::MASKED {
            return value;
        }
        s.keep(self.seen(s, key, c), self.unmasked_or::<S, V>(s, key, c, [value, s.zero()]))
    }

    /// `value` in the lanes that see key `key` of the block, `other` in the others.
    #[inline(always)]
    pub(super) fn seen_or<S: Lanes, V: Variant>(&self, s: S, key: usize, c: usize, [value, other]: [S::F; 2]) -> S::F {
        if !V::MASKED {
            return value;
        }
        s.select(self.seen(s, key, c), self.unmasked_or::<S, V>(s, key, c, [value, other]), other)
    }

    /// The lanes whose positions see key `key` of the block.
    #[inline(always)]
    fn seen<S: Lanes>(&self, s: S, key: usize, c: usize) -> S::M {
        let positions = s.load_i(&self.positions[c * S::N..]);
        s.between(positions, self.facts.first[key], self.facts.last[key])
    }

    /// `other` where the dense table hides.
    #[inline(always)]
    fn unmasked_or<S: Lanes, V: Variant>(&self, s: S, key: usize, c: usize, [value, other]: [S::F; 2]) -> S::F {
        if !V::RICH || !self.extras.dense {
            return value;
        }
        let dense = s.load(&self.dense[(key * 2 + c) * S::N..]);
        s.select(s.equal(dense, s.splat(f32::NEG_INFINITY)), other, value)
    }

    /// Whether lane `lane` of the panel sees key `key` of the block.
    pub(super) fn sees(&self, key: usize, lane: usize) -> bool {
        let position = self.positions[lane];
        let inside = self.facts.first[key] <= position && position <= self.facts.last[key];
        inside && !(self.extras.dense && self.dense[key * self.positions.len() + lane] == f32::NEG_INFINITY)
    }

    /// A weight of key `key` of the block after dropout.
    #[inline(always)]
    pub(super) fn drop<S: Lanes, V: Variant>(&self, s: S, key: usize, c: usize, weight: S::F) -> S::F {
        let (true, Some(mask)) = (V::RICH, self.extras.dropout) else { return weight };
        let index = if key < self.facts.count { self.facts.rows[key] - self.origin } else { 0 };
        s.mul(weight, mask.weights(s, s.load_i(&self.hashes[c * S::N..]), index))
    }
}
