//! Decoding: both parts remember what is theirs, and a token's outputs are joined.

use super::Join;
use super::cut::{Cut, Heads};
use super::plan::shares;
use crate::mechanism::memory::{Memory, Token, Tokens};
use crate::mechanism::owned::Owned;
use crate::mechanism::{About, State};
use crate::problem::check_flat;
use crate::{Error, Output, Par};

/// What two mechanisms remember of one sequence.
#[derive(Debug, Clone)]
pub struct Remembered {
    join: Join,
    split: Option<usize>,
    parts: [(&'static About, State); 2],
}

impl Remembered {
    pub(super) fn new(join: Join, split: Option<usize>, parts: [(&'static About, State); 2]) -> Self {
        Remembered { join, split, parts }
    }

    /// Of both parts; without a query, as if there were as many query heads as kv heads, unless a tensor of query heads says how many.
    fn heads(&self, tokens: &Tokens<'_>, queries: Option<usize>) -> Result<[Heads; 2], Error> {
        let kv_heads = tokens.k.shape()[1];
        let told = tokens.gates.or(tokens.codebook_q).map(|view| view.shape()[1]).or(tokens.threshold.map(<[f32]>::len));
        Heads::of(self.join, self.split, [queries.or(told).unwrap_or(kv_heads), kv_heads])
    }

    fn check(&self, token: &Token<'_>, out: &Output<'_>) -> Result<(), Error> {
        token.check(out)?;
        let heads = token.q.shape()[1];
        check_flat("lse", out.lse.as_deref(), heads)?;
        if token.bias.is_some() {
            return Err(Error::Combination("steps of two mechanisms together take no bias".into()));
        }
        match (self.join, token.kept.mix) {
            (Join::Sum, None) => Err(Error::Combination("mix is missing with a token".into())),
            (Join::Sum, Some(mix)) => check_flat("mix", Some(mix), heads),
            _ => Ok(()),
        }
    }
}

impl Memory for Remembered {
    fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, state)| state.bytes()).sum()
    }

    fn tokens(&self) -> usize {
        self.parts[0].1.tokens()
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        let heads = self.heads(tokens, None)?;
        for ((about, state), heads) in self.parts.iter_mut().zip(&heads) {
            let cut = Cut::of_tokens(heads, tokens);
            state.prefill(&heads.tokens(tokens, &cut, about.tensors)?)?;
        }
        Ok(())
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        self.check(token, out)?;
        let ([_, all, _, _], dv) = (token.q.shape(), token.kept.v.shape()[3]);
        let heads = self.heads(&token.kept, Some(all))?;
        let mut o = Owned::zeros([1, all, 1, dv]);
        let mut sums = vec![f32::NEG_INFINITY; all];
        let mut found = Vec::new();
        for ((about, state), heads) in self.parts.iter_mut().zip(&heads) {
            let (mut own, mut lse) = (Owned::zeros([1, heads.queries.len(), 1, dv]), vec![f32::NEG_INFINITY; heads.queries.len()]);
            let cut = Cut::of_tokens(heads, &token.kept);
            let kept = heads.tokens(&token.kept, &cut, about.tensors)?;
            state.step(&heads.token(token, kept)?, &mut Output { o: own.view_mut(), lse: Some(&mut lse) }, par)?;
            found.push((own, lse));
        }
        for h in 0..all {
            let inside = |at: usize| heads[at].queries.contains(&h).then(|| h - heads[at].queries.start);
            let places = [inside(0), inside(1)];
            let lse = [0, 1].map(|at| places[at].map_or(f32::NEG_INFINITY, |h| found[at].1[h]));
            let (weights, sum) = match self.join {
                Join::Heads => ([1.0; 2], lse[0].max(lse[1])),
                join => shares(join, lse, token.kept.mix.map_or(0.0, |mix| mix[h])),
            };
            sums[h] = sum;
            for at in 0..2 {
                let Some(place) = places[at] else { continue };
                let own = found[at].0.row([0, place, 0]);
                o.row_mut([0, h, 0]).iter_mut().zip(own).for_each(|(sum, x)| *sum += weights[at] * x);
            }
        }
        if let Some(lse) = &mut out.lse {
            lse.copy_from_slice(&sums);
        }
        o.write(&mut out.o, par)
    }
}
