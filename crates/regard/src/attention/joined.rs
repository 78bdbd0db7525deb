//! Two mechanisms together: heads of one beside those of the other, or a sum with a share for each head.

use super::rules::Constant;
use super::{Attention, Learned, composed};
use crate::Error;
use burn::tensor::{Tensor, activation};
use regard_core::mechanism::Joined;
use regard_core::mechanism::combined::Join;
use std::ops::Range;
use std::sync::Arc;

/// `[B, H, N, Dv]`.
pub(super) fn attention(joined: &Joined<'_>, how: &Attention, qkv: &[Tensor<4>; 3]) -> Result<Tensor<4>, Error> {
    let run = |at: usize| {
        let (composition, traces) = &joined.parts[at];
        let [queries, keys] = &joined.heads[at];
        let [q, k, v] = qkv;
        let part = [of_heads(q, queries), of_heads(k, keys), of_heads(v, keys)];
        composed::follow(composition, traces, &how.part(&joined.heads[at], k.dims()[1]), part)
    };
    let [a, b] = [run(0)?, run(1)?];
    if joined.join == Join::Heads {
        return Ok(Tensor::cat(vec![a, b], 1));
    }
    let missing = || regard_core::Error::Combination("mix is missing".into());
    let mix = how.learned.mix.clone().ok_or_else(missing)?.cast(a.dtype());
    let heads = mix.dims()[0];
    let share = |mix: Tensor<1>| activation::sigmoid(mix).reshape([1, heads, 1, 1]);
    Ok(a * share(mix.clone()) + b * share(-mix))
}

fn of_heads(x: &Tensor<4>, range: &Range<usize>) -> Tensor<4> {
    x.clone().narrow(1, range.start, range.len())
}

impl Attention {
    /// What a part with these query heads and kv heads, of so many kv heads, is given.
    fn part(&self, [queries, keys]: &[Range<usize>; 2], kv_heads: usize) -> Self {
        let Learned { x, type_logits, threshold, gates, mix: _ } = self.learned.clone();
        let of_types = |logits: Tensor<4>| {
            let range = if logits.dims()[1] == kv_heads { keys } else { queries };
            of_heads(&logits, range)
        };
        let learned = Learned {
            x,
            type_logits: type_logits.map(of_types),
            threshold: threshold.map(|threshold| threshold.narrow(0, queries.start, queries.len())),
            gates: gates.map(|gates| of_heads(&gates, queries)),
            mix: None,
        };
        let mask = self.mask.clone().map(|mask| if mask.dims()[1] == 1 { mask } else { mask.narrow(1, queries.start, queries.len()) });
        let mut how = Attention { learned, mask, ..self.clone() };
        let rules = Arc::make_mut(&mut how.rules);
        rules.codebook = rules.codebook.as_ref().map(|words| Constant::of_matrices(words, keys));
        rules.codebook_q = rules.codebook_q.as_ref().map(|words| Constant::of_matrices(words, queries));
        how
    }
}
