//! Which heads are whose, and what a part is given of the caller's tensors.

use super::Join;
use crate::mechanism::{About, Inputs, Token, Tokens};
use crate::problem::expect;
use crate::view::View;
use crate::{Error, Sight};
use std::ops::Range;

/// The heads of a part, of how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Heads {
    pub(super) queries: Range<usize>,
    pub(super) keys: Range<usize>,
    /// Query and kv heads of the call.
    all: [usize; 2],
}

/// Slices that are of both parts in turn, copied.
#[derive(Debug, Clone, Default)]
pub(super) struct Cut {
    types: Option<Vec<i64>>,
    type_logits: Option<Vec<f32>>,
}

fn part<'a>(tensor: &'static str, view: &View<'a>, (heads, range): (usize, &Range<usize>)) -> Result<View<'a>, Error> {
    let [batch, _, rows, width] = view.shape();
    expect(tensor, view.shape(), [batch, heads, rows, width])?;
    view.part([0, range.start, 0, 0], [batch, range.len(), rows, width])
}

/// Elements `[batch, heads, rest]` of some heads.
pub(super) fn of_heads<T: Copy>(flat: &[T], [batch, heads]: [usize; 2], range: &Range<usize>) -> Vec<T> {
    let rest = flat.len() / (batch * heads).max(1);
    let rows = (0..batch).flat_map(|b| (b * heads + range.start) * rest..(b * heads + range.end) * rest);
    rows.map(|at| flat[at]).collect()
}

impl Heads {
    /// Of both parts: all, or for [`Join::Heads`] the first `split` kv heads and the rest.
    pub(super) fn of(join: Join, split: Option<usize>, all @ [heads, kv_heads]: [usize; 2]) -> Result<[Self; 2], Error> {
        if heads == 0 || kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::Heads { heads, kv_heads });
        }
        let group = heads / kv_heads;
        let of = |keys: Range<usize>| Heads { queries: keys.start * group..keys.end * group, keys, all };
        if join != Join::Heads {
            return Ok([of(0..kv_heads), of(0..kv_heads)]);
        }
        let split = split.unwrap_or(kv_heads.div_ceil(2));
        if !(1..kv_heads).contains(&split) {
            return Err(Error::value("split", format!("{split} of {kv_heads} kv heads: each part has at least 1")));
        }
        Ok([of(0..split), of(split..kv_heads)])
    }

    /// Whether these are all heads.
    pub(super) fn is_all(&self) -> bool {
        self.keys.len() == self.all[1]
    }

    /// The heads that elements `[batch, heads, per head]` are of: kv heads, where they fit, else query heads.
    pub(super) fn side(&self, elements: usize, of_keys: usize) -> (usize, &Range<usize>) {
        if elements == of_keys { (self.all[1], &self.keys) } else { (self.all[0], &self.queries) }
    }

    /// Those of a tensor with so many, named so: of keys, of queries, or shared by all.
    pub(super) fn axis(&self, name: &str) -> Option<(usize, &Range<usize>)> {
        match name {
            "q" | "gates" | "threshold" => Some((self.all[0], &self.queries)),
            "k" | "v" => Some((self.all[1], &self.keys)),
            _ => None,
        }
    }

    /// The query heads of a tensor.
    fn of_queries<'a>(&self, tensor: &'static str, view: &View<'a>) -> Result<View<'a>, Error> {
        part(tensor, view, (self.all[0], &self.queries))
    }

    /// The kv heads of a tensor.
    fn of_keys<'a>(&self, tensor: &'static str, view: &View<'a>) -> Result<View<'a>, Error> {
        part(tensor, view, (self.all[1], &self.keys))
    }

    /// What a part reads of the caller's inputs.
    pub(super) fn inputs<'a>(&self, inputs: &Inputs<'a>, cut: &'a Cut, about: &About) -> Result<Inputs<'a>, Error> {
        if inputs.sight.spans.is_some() || inputs.sight.positions.is_some() {
            return Err(Error::Combination("two mechanisms together take no key_spans and no key_positions".into()));
        }
        let reads = |tensor: &str| about.tensors.contains(&tensor);
        let queries =
            |view: Option<View<'a>>, tensor| view.filter(|_| reads(tensor)).map(|view| self.of_queries(tensor, &view)).transpose();
        let keys = |view: Option<View<'a>>, tensor| view.filter(|_| reads(tensor)).map(|view| self.of_keys(tensor, &view)).transpose();
        Ok(Inputs {
            x: inputs.x.filter(|_| reads("x")),
            types: if reads("types") { cut.types.as_deref() } else { None },
            type_logits: if reads("type_logits") { cut.type_logits.as_deref() } else { None },
            threshold: self.threshold(inputs.threshold.filter(|_| reads("threshold")))?,
            gates: queries(inputs.gates, "gates")?,
            codebook: keys(inputs.codebook, "codebook")?,
            codebook_q: queries(inputs.codebook_q, "codebook_q")?,
            hyperplanes: inputs.hyperplanes.filter(|_| reads("hyperplanes")),
            ..Inputs::new(
                self.of_queries("q", &inputs.q)?,
                self.of_keys("k", &inputs.k)?,
                self.of_keys("v", &inputs.v)?,
                self.sight(&inputs.sight)?,
            )
        })
    }

    fn threshold<'a>(&self, threshold: Option<&'a [f32]>) -> Result<Option<&'a [f32]>, Error> {
        let Some(all) = threshold else { return Ok(None) };
        let wrong = || Error::Shape { tensor: "threshold", found: vec![all.len()], expected: vec![self.all[0]] };
        if all.len() == self.all[0] { Ok(Some(&all[self.queries.clone()])) } else { Err(wrong()) }
    }

    fn sight<'a>(&self, sight: &Sight<'a>) -> Result<Sight<'a>, Error> {
        let Some(mask) = sight.mask.filter(|mask| mask.shape()[1] > 1) else { return Ok(*sight) };
        let [batch, _, queries, keys] = mask.shape();
        Ok(sight.mask(mask.part([0, self.queries.start, 0, 0], [batch, self.queries.len(), queries, keys])?))
    }

    /// What a part reads of tokens that come in.
    pub(super) fn tokens<'a>(&self, tokens: &Tokens<'a>, cut: &'a Cut, reads: &[&str]) -> Result<Tokens<'a>, Error> {
        let reads = |tensor: &str| reads.contains(&tensor);
        let queries =
            |view: Option<View<'a>>, tensor| view.filter(|_| reads(tensor)).map(|view| self.of_queries(tensor, &view)).transpose();
        let keys = |view: Option<View<'a>>, tensor| view.filter(|_| reads(tensor)).map(|view| self.of_keys(tensor, &view)).transpose();
        Ok(Tokens {
            types: if reads("types") { cut.types.as_deref() } else { None },
            type_logits: if reads("type_logits") { cut.type_logits.as_deref() } else { None },
            x: tokens.x.filter(|_| reads("x")),
            threshold: self.threshold(tokens.threshold.filter(|_| reads("threshold")))?,
            gates: queries(tokens.gates, "gates")?,
            codebook: keys(tokens.codebook, "codebook")?,
            codebook_q: queries(tokens.codebook_q, "codebook_q")?,
            ..Tokens::new(self.of_keys("k", &tokens.k)?, self.of_keys("v", &tokens.v)?)
        })
    }

    /// The same of a token with its query.
    pub(super) fn token<'a>(&self, token: &Token<'a>, kept: Tokens<'a>) -> Result<Token<'a>, Error> {
        let mask = token.mask.map(|mask| {
            let [_, heads, queries, keys] = mask.shape();
            if heads == 1 { Ok(mask) } else { mask.part([0, self.queries.start, 0, 0], [1, self.queries.len(), queries, keys]) }
        });
        Ok(Token { q: self.of_queries("q", &token.q)?, kept, bias: None, mask: mask.transpose()? })
    }
}

impl Cut {
    /// Of the inputs of a call.
    pub(super) fn new(heads: &Heads, inputs: &Inputs<'_>) -> Self {
        let dims = inputs.dims();
        Self::of(heads, [dims.batch, dims.keys], (inputs.types, inputs.type_logits))
    }

    /// Of tokens that come in.
    pub(super) fn of_tokens(heads: &Heads, tokens: &Tokens<'_>) -> Self {
        Self::of(heads, [1, tokens.count()], (tokens.types, tokens.type_logits))
    }

    fn of(heads: &Heads, [batch, keys]: [usize; 2], (types, logits): (Option<&[i64]>, Option<&[f32]>)) -> Self {
        let of_keys = batch * heads.all[1] * keys;
        Cut {
            types: types.map(|types| {
                let (count, range) = heads.side(types.len(), of_keys);
                of_heads(types, [batch, count], range)
            }),
            type_logits: logits.map(|logits| {
                let (count, range) = heads.side(logits.len(), 3 * of_keys);
                of_heads(logits, [batch, count], range)
            }),
        }
    }
}
