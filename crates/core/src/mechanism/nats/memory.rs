//! Decoding: per kv head, the keys that still live. A global ends the lives of the locals before it, a window key's life
//! ends by itself; what is dead leaves memory.

use super::{FOR_EVER, GLOBAL, LOCAL, Nats, TYPES, check_types, largest, window_end};
use crate::mechanism::memory::{Memory, Token, Tokens, check_count, widen};
use crate::mechanism::owned::Owned;
use crate::view::{Strided, StridedMut, View, ViewMut};
use crate::{Error, Output, Par, Problem, Scores, Sight, exact};

/// The keys of one sequence that still live.
#[derive(Debug, Clone)]
pub struct Live {
    config: Nats,
    tokens: usize,
    widths: [usize; 2],
    heads: Vec<Head>,
}

/// The live keys of one kv head.
#[derive(Debug, Clone, Default)]
struct Head {
    keys: Vec<f32>,
    values: Vec<f32>,
    /// First position that does not see each.
    until: Vec<i64>,
}

impl Head {
    fn push(&mut self, k: impl Iterator<Item = f32>, v: impl Iterator<Item = f32>, until: i64) {
        self.keys.extend(k);
        self.values.extend(v);
        self.until.push(until);
    }

    /// A global at `position` came: locals live up to it.
    fn end_locals(&mut self, position: i64) {
        self.until.iter_mut().filter(|until| **until == UNDECIDED).for_each(|until| *until = position + 1);
    }

    /// Forgets what nobody from `position` on sees, keeping the order of the rest.
    fn forget(&mut self, position: i64, [dk, dv]: [usize; 2]) {
        let mut kept = 0;
        for at in 0..self.until.len() {
            if self.until[at] <= position {
                continue;
            }
            if kept != at {
                self.until[kept] = self.until[at];
                self.keys.copy_within(at * dk..(at + 1) * dk, kept * dk);
                self.values.copy_within(at * dv..(at + 1) * dv, kept * dv);
            }
            kept += 1;
        }
        shrink(&mut self.until, kept);
        shrink(&mut self.keys, kept * dk);
        shrink(&mut self.values, kept * dv);
    }

    fn bytes(&self) -> usize {
        (self.keys.capacity() + self.values.capacity()) * size_of::<f32>() + self.until.capacity() * size_of::<i64>()
    }
}

/// A local key before the next global. It lives as long as a global one, unless that comes.
const UNDECIDED: i64 = FOR_EVER - 1;

/// Truncates, and gives memory back where most of it is unused.
fn shrink<T>(values: &mut Vec<T>, length: usize) {
    values.truncate(length);
    if values.capacity() > 1024 && length < values.capacity() / 4 {
        values.shrink_to(2 * length);
    }
}

impl Live {
    pub(super) fn new(config: Nats) -> Self {
        Live { config, tokens: 0, widths: [0; 2], heads: Vec::new() }
    }

    /// Keys held by each kv head.
    pub fn held(&self) -> Vec<usize> {
        self.heads.iter().map(|head| head.until.len()).collect()
    }

    /// Types of tokens, `[heads, T]`; the first token of all is global if types are chosen by logits.
    fn types(&self, tokens: &Tokens<'_>, heads: usize) -> Result<Vec<i64>, Error> {
        let count = tokens.count();
        check_count("types", tokens.types.map(<[_]>::len), heads * count)?;
        check_count("type_logits", tokens.type_logits.map(<[_]>::len), heads * count * TYPES)?;
        match (tokens.types, tokens.type_logits) {
            (Some(types), None) => check_types(types, heads, count).map(|()| types.to_vec()),
            (None, Some(logits)) => {
                let forced = |at: usize| self.tokens == 0 && at.is_multiple_of(count);
                let logits: &[[f32; TYPES]] = logits.as_chunks().0;
                Ok(logits.iter().enumerate().map(|(at, logits)| if forced(at) { GLOBAL } else { largest(logits) }).collect())
            }
            _ => Err(Error::Combination("nats needs either the types of its tokens or type_logits".into())),
        }
    }

    fn take_in(&mut self, tokens: &Tokens<'_>, types: &[i64]) -> Result<(), Error> {
        tokens.check()?;
        if tokens.key_bias.is_some() || tokens.until.is_some() {
            return Err(Error::Combination("nats reads no key_bias and no until".into()));
        }
        let ([_, heads, count, dk], dv) = (tokens.k.shape(), tokens.v.shape()[3]);
        if self.tokens == 0 {
            (self.heads, self.widths) = (vec![Head::default(); heads], [dk, dv]);
        }
        let held = [self.heads.len(), self.widths[0], self.widths[1]];
        if held != [heads, dk, dv] {
            return Err(Error::Shape { tensor: "heads, Dk, Dv", found: vec![heads, dk, dv], expected: held.to_vec() });
        }
        for n in 0..count {
            let position = self.tokens as i64;
            for (g, head) in self.heads.iter_mut().enumerate() {
                let kind = types.get(g * count + n).copied().unwrap_or(GLOBAL);
                let until = match kind {
                    GLOBAL => FOR_EVER,
                    LOCAL => UNDECIDED,
                    _ => window_end(position, self.config.reach()).min(UNDECIDED - 1),
                };
                if kind == GLOBAL {
                    head.end_locals(position);
                }
                head.forget(position, self.widths);
                let row = |view: &View<'_>, d| view.at([0, g, n, d]);
                head.push((0..dk).map(|d| row(&tokens.k, d)), (0..dv).map(|d| row(&tokens.v, d)), until);
            }
            self.tokens += 1;
        }
        Ok(())
    }

    /// Attention of some query heads `[heads, Dk]` over the last `seen` keys of a kv head.
    fn attend(&self, g: usize, q: &[f32], seen: usize, (o, lse): (&mut [f32], &mut [f32]), par: Par) -> Result<(), Error> {
        let [dk, dv] = self.widths;
        let head = &self.heads[g];
        let first = head.until.len() - seen;
        let k = Strided::contiguous(&head.keys[first * dk..], [1, 1, seen, dk], "k")?;
        let v = Strided::contiguous(&head.values[first * dv..], [1, 1, seen, dv], "v")?;
        let heads = q.len() / dk;
        let q = Strided::contiguous(q, [1, heads, 1, dk], "q")?;
        let scores = self.config.scale.map_or_else(Scores::new, |scale| Scores::new().scale(scale));
        let problem = Problem::new(q.into(), k.into(), v.into(), Sight::full(), scores)?;
        let o = ViewMut::F32(StridedMut::contiguous(o, [1, heads, 1, dv], "o")?);
        exact::forward(&problem, &mut Output { o, lse: Some(lse) }, par)
    }
}

impl Memory for Live {
    fn bytes(&self) -> usize {
        self.heads.iter().map(Head::bytes).sum()
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        if self.config.query_typed {
            let (types, count) = (tokens.types.unwrap_or_default(), tokens.count());
            check_count("types", Some(types.len() % count.max(1)), 0)?;
            check_types(types, (types.len() / count.max(1)).max(1), count.max(1))?;
            return self.take_in(tokens, &[]);
        }
        let types = self.types(tokens, tokens.k.shape()[1])?;
        self.take_in(tokens, &types)
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        token.check(out)?;
        if token.bias.is_some() || token.mask.is_some() {
            return Err(Error::Combination("steps of nats take no bias and no mask: keys leave memory".into()));
        }
        let [_, heads, _, dk] = token.q.shape();
        let dv = token.kept.v.shape()[3];
        let kv_heads = token.kept.k.shape()[1];
        if kv_heads == 0 || heads % kv_heads != 0 {
            return Err(Error::Heads { heads, kv_heads });
        }
        let types = self.types(&token.kept, if self.config.query_typed { heads } else { kv_heads })?;
        self.take_in(&token.kept, if self.config.query_typed { &[] } else { &types })?;
        let q = widen(&token.q);
        let mut all = Owned::zeros([1, heads, 1, dv]);
        let mut lse = vec![0.0; heads];
        // Query heads that look equally far attend together.
        let together = if self.config.query_typed { 1 } else { heads / kv_heads };
        for (at, (o, lse)) in all.data.chunks_mut(together * dv).zip(lse.chunks_mut(together)).enumerate() {
            let g = at * together / (heads / kv_heads);
            let held = self.heads[g].until.len();
            let seen = match types[at] {
                LOCAL if self.config.query_typed => 1,
                kind if self.config.query_typed && kind != GLOBAL => held.min(self.config.reach().saturating_add(1)),
                _ => held,
            };
            self.attend(g, &q[at * together * dk..][..together * dk], seen, (o, lse), par)?;
        }
        all.write(&mut out.o, par)?;
        if let Some(into) = &mut out.lse {
            into.copy_from_slice(&lse);
        }
        Ok(())
    }
}
