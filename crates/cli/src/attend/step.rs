//! The mechanism's step form: each sequence takes in its first keys at once, then one token at a time. Steps compute in
//! f32; their outputs are rounded to the dtype of q.

use super::{Call, Named};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::{State, Token};
use regard_core::{Dims, Error, Output, View};
use std::ops::Range;

/// o and lse, laid out as the parallel form lays them.
pub fn attend(call: &Call<'_>, loaded: &Loaded) -> Result<Vec<Named>, Error> {
    let sequences = check(call, loaded)?;
    let Dims { batch, heads, queries, dv, .. } = loaded.dims;
    let mut o = Tensor::zeros(Float::F32, &[batch, heads, queries, dv]);
    let mut lse = Tensor::zeros(Float::F32, &[batch, heads, queries]);
    lse.as_f32_mut().fill(f32::NEG_INFINITY);
    let key_bias: Option<Vec<f32>> = loaded.key_bias.as_ref().map(|bias| bias.to_f64().iter().map(|&x| x as f32).collect());
    for sequence in sequences {
        let mut state = call.chosen.mechanism.start()?;
        let steps = Steps { call, loaded, key_bias: key_bias.as_deref(), sequence };
        steps.prefill(&mut state)?;
        for n in 0..sequence.queries {
            let row = steps.step(&mut state, n, &mut o)?;
            for (h, value) in row.into_iter().enumerate() {
                lse.as_f32_mut()[(sequence.b * heads + h) * queries + n] = value;
            }
        }
    }
    Ok(vec![("o", o.converted(loaded.float)), ("lse", lse)])
}

/// Refuses what cannot be stepped through, and says where each sequence begins. Without queries there is none.
pub fn check(call: &Call<'_>, loaded: &Loaded) -> Result<Vec<Sequence>, Error> {
    call.chosen.mechanism.start()?;
    let batch = if loaded.dims.queries == 0 { 0 } else { loaded.dims.batch };
    (0..batch).map(|b| Sequence::of(loaded, b)).collect()
}

/// One sequence: so many keys come before the first of so many queries.
#[derive(Clone, Copy)]
pub struct Sequence {
    b: usize,
    before: usize,
    queries: usize,
}

impl Sequence {
    fn of(loaded: &Loaded, b: usize) -> Result<Self, Error> {
        let Dims { queries, keys, .. } = loaded.dims;
        let at_b = |lengths: &Option<Vec<usize>>| lengths.as_ref().and_then(|lengths| lengths.get(b).copied());
        let keys_here = at_b(&loaded.lengths).unwrap_or(keys);
        let queries_here = at_b(&loaded.lengths_q).unwrap_or(if queries == keys { keys_here } else { queries });
        let before = keys_here.checked_sub(queries_here).ok_or_else(|| Error::Value {
            name: "lengths",
            message: format!("batch row {b} has {queries_here} queries and {keys_here} keys; a step needs a key for every query"),
        })?;
        Ok(Sequence { b, before, queries: queries_here })
    }
}

/// One sequence and what it is made of.
struct Steps<'a> {
    call: &'a Call<'a>,
    loaded: &'a Loaded,
    /// `[B, G, M]`.
    key_bias: Option<&'a [f32]>,
    sequence: Sequence,
}

impl Steps<'_> {
    fn prefill(&self, state: &mut State) -> Result<(), Error> {
        let before = 0..self.sequence.before;
        let [k, v] = self.keys_and_values(before.clone())?;
        let key_bias = self.columns(self.key_bias, before.clone());
        let until = self.columns(self.loaded.until.as_deref(), before);
        state.prefill(k, v, key_bias.as_deref(), until.as_deref())
    }

    /// Takes in token `n`, writes its row of o and gives back its lse, `[H]`.
    fn step(&self, state: &mut State, n: usize, o: &mut Tensor) -> Result<Vec<f32>, Error> {
        let Loaded { dims: Dims { heads, dk, dv, .. }, q, bias, mask, until, .. } = self.loaded;
        let b = self.sequence.b;
        let at = self.sequence.before + n;
        let [k, v] = self.keys_and_values(at..at + 1)?;
        let key_bias = self.columns(self.key_bias, at..at + 1);
        let until = self.columns(until.as_deref(), at..at + 1);
        let so_far = |dense: &Tensor| ([b.min(dense.shape[0] - 1), 0, n, 0], [1, dense.shape[1], 1, at + 1]);
        let bias = bias.as_ref().map(|bias| (bias, so_far(bias))).map(|(bias, (start, shape))| bias.part(start, shape, "bias"));
        let mask = mask.as_ref().map(|mask| (mask, so_far(mask))).map(|(mask, (start, shape))| mask.mask_part(start, shape));
        let token = Token {
            q: q.part([b, 0, n, 0], [1, *heads, 1, *dk], "q")?,
            k,
            v,
            key_bias: key_bias.as_deref(),
            until: until.as_deref(),
            bias: bias.transpose()?,
            mask: mask.transpose()?,
        };
        let mut lse = vec![0.0; *heads];
        let mut out = Output { o: o.row_mut([b, n], [1, *heads, 1, *dv], "o")?, lse: Some(&mut lse) };
        state.step(&token, &mut out, self.call.par)?;
        Ok(lse)
    }

    /// Some keys of this sequence and their values.
    fn keys_and_values(&self, range: Range<usize>) -> Result<[View<'_>; 2], Error> {
        let Dims { kv_heads, dk, dv, .. } = self.loaded.dims;
        let start = [self.sequence.b, 0, range.start, 0];
        let shape = |width| [1, kv_heads, range.len(), width];
        Ok([self.loaded.k.part(start, shape(dk), "k")?, self.loaded.v.part(start, shape(dv), "v")?])
    }

    /// Some columns of this sequence's rows of `[B, G, M]`.
    fn columns<T: Copy>(&self, values: Option<&[T]>, range: Range<usize>) -> Option<Vec<T>> {
        let Dims { kv_heads, keys, .. } = self.loaded.dims;
        let row = |g: usize| (self.sequence.b * kv_heads + g) * keys;
        values.map(|values| (0..kv_heads).flat_map(|g| &values[row(g) + range.start..row(g) + range.end]).copied().collect())
    }
}
