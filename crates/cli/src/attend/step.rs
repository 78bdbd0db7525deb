//! The mechanism's step form: each sequence takes in its first keys at once, then one token at a time. Steps compute in
//! f32; their outputs are rounded to the dtype of q.

use super::{Call, Named};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::{Memory, State, Token, Tokens};
use regard_core::{Dims, Error, Output, View};
use std::ops::Range;

/// o and lse, laid out as the parallel form lays them.
pub fn attend(call: &Call<'_>, mut loaded: Loaded) -> Result<Vec<Named>, Error> {
    let sequences = check(call, &loaded)?;
    loaded.narrow();
    let Dims { batch, heads, queries, dv, .. } = loaded.dims;
    let mut o = Tensor::zeros(Float::F32, &[batch, heads, queries, dv]);
    let mut lse = Tensor::zeros(Float::F32, &[batch, heads, queries]);
    lse.as_f32_mut().fill(f32::NEG_INFINITY);
    for sequence in sequences {
        let mut state = call.chosen.mechanism.start()?;
        let steps = Steps { call, loaded: &loaded, sequence };
        state.prefill(&steps.slice(0..sequence.before)?.tokens())?;
        for n in 0..sequence.queries {
            let row = steps.step(&mut state, n, &mut o)?;
            for (h, value) in row.into_iter().enumerate() {
                lse.as_f32_mut()[(sequence.b * heads + h) * queries + n] = value;
            }
        }
    }
    let mut results = vec![("o", o.converted(loaded.float))];
    if call.chosen.about().traces.contains(&"lse") {
        results.push(("lse", lse));
    }
    Ok(results)
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
    sequence: Sequence,
}

/// Some tokens of a sequence.
struct Slice<'a> {
    k: View<'a>,
    v: View<'a>,
    x: Option<View<'a>>,
    key_bias: Option<Vec<f32>>,
    until: Option<Vec<i64>>,
    types: Option<Vec<i64>>,
    type_logits: Option<Vec<f32>>,
    gates: Option<View<'a>>,
    mix: Option<&'a [f32]>,
    codebook: Option<View<'a>>,
    codebook_q: Option<View<'a>>,
}

impl Slice<'_> {
    fn tokens(&self) -> Tokens<'_> {
        Tokens {
            x: self.x,
            key_bias: self.key_bias.as_deref(),
            until: self.until.as_deref(),
            types: self.types.as_deref(),
            type_logits: self.type_logits.as_deref(),
            gates: self.gates,
            mix: self.mix,
            codebook: self.codebook,
            codebook_q: self.codebook_q,
            ..Tokens::new(self.k, self.v)
        }
    }
}

impl<'a> Steps<'a> {
    /// Takes in token `n`, writes its row of o and gives back its lse, `[H]`.
    fn step(&self, state: &mut State, n: usize, o: &mut Tensor) -> Result<Vec<f32>, Error> {
        let Loaded { dims: Dims { heads, dk, dv, .. }, q, bias, mask, .. } = self.loaded;
        let b = self.sequence.b;
        let at = self.sequence.before + n;
        let so_far = |dense: &Tensor| ([b.min(dense.shape[0] - 1), 0, n, 0], [1, dense.shape[1], 1, at + 1]);
        let bias = bias.as_ref().map(|bias| (bias, so_far(bias))).map(|(bias, (start, shape))| bias.part(start, shape, "bias"));
        let mask = mask.as_ref().map(|mask| (mask, so_far(mask))).map(|(mask, (start, shape))| mask.mask_part(start, shape));
        let slice = self.slice(at..at + 1)?;
        let token = Token {
            q: q.part([b, 0, n, 0], [1, *heads, 1, *dk], "q")?,
            kept: slice.tokens(),
            bias: bias.transpose()?,
            mask: mask.transpose()?,
        };
        let mut lse = vec![0.0; *heads];
        let mut out = Output { o: o.row_mut([b, n], [1, *heads, 1, *dv], "o")?, lse: Some(&mut lse) };
        state.step(&token, &mut out, self.call.par)?;
        Ok(lse)
    }

    /// Some tokens of this sequence.
    fn slice(&self, range: Range<usize>) -> Result<Slice<'a>, Error> {
        let loaded = self.loaded;
        let Dims { heads, kv_heads, dk, dv, .. } = loaded.dims;
        let start = [self.sequence.b, 0, range.start, 0];
        let shape = |width| [1, kv_heads, range.len(), width];
        let hidden = |x: &'a Tensor| x.part(start, [1, 1, range.len(), x.shape[3]], "x");
        let flat = |tensor: &'a Option<Tensor>| tensor.as_ref().map(Tensor::as_f32);
        Ok(Slice {
            k: loaded.k.part(start, shape(dk), "k")?,
            v: loaded.v.part(start, shape(dv), "v")?,
            x: loaded.x.as_ref().map(hidden).transpose()?,
            key_bias: self.columns(flat(&loaded.key_bias), 1, &range),
            until: self.columns(loaded.until.as_deref(), 1, &range),
            types: self.columns(loaded.types.as_deref(), 1, &range),
            type_logits: self.columns(flat(&loaded.type_logits), 3, &range),
            gates: loaded.gates.as_ref().map(|gates| gates.part(start, [1, heads, range.len(), dk], "gates")).transpose()?,
            mix: flat(&loaded.mix),
            codebook: loaded.codebook.as_ref().map(|codebook| codebook.view("codebook")).transpose()?,
            codebook_q: loaded.codebook_q.as_ref().map(|codebook| codebook.view("codebook_q")).transpose()?,
        })
    }

    /// Some tokens of this sequence's heads, `[heads, tokens, width]`, of a tensor of keys or of queries.
    fn columns<T: Copy>(&self, values: Option<&[T]>, width: usize, range: &Range<usize>) -> Option<Vec<T>> {
        let Dims { batch, kv_heads, queries, keys, .. } = self.loaded.dims;
        let values = values?;
        let of_keys = values.len() == batch * kv_heads * keys * width;
        let tokens = if of_keys { keys } else { queries };
        let first = if of_keys { 0 } else { self.sequence.before };
        let range = range.start.saturating_sub(first) * width..range.end.saturating_sub(first) * width;
        let heads = values.chunks(tokens * width).skip(self.sequence.b * (values.len() / batch / (tokens * width)));
        Some(heads.take(values.len() / batch / (tokens * width)).flat_map(|head| &head[range.clone()]).copied().collect())
    }
}
