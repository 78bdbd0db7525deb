//! Decoding: counts and sums of values per code, and where recent keys are left out a ring of them. The codewords are not counted among the
//! bytes: they are parameters.

use super::{codebook, codewords};
use crate::coded::{Coded, Queries, Rule, Summary, Tables, table};
use crate::mechanism::memory::{Memory, Token, Tokens, widen};
use crate::problem::expect;
use crate::quantise::Codewords;
use crate::view::{Strided, View};
use crate::{Dims, Error, Output, Par};
use std::collections::VecDeque;
use std::sync::Arc;

/// Options of a memory.
#[derive(Debug, Clone)]
pub(in crate::mechanism) struct Held {
    pub(in crate::mechanism) name: &'static str,
    /// Keys nearer than this are left out.
    pub(in crate::mechanism) gap: usize,
    pub(in crate::mechanism) scale: Option<f32>,
    /// Whether queries are quantised, too.
    pub(in crate::mechanism) queries: bool,
}

/// What is remembered of one sequence.
#[derive(Debug, Clone)]
pub struct Tallies {
    options: Held,
    tokens: usize,
    state: Option<State>,
}

/// What the first token decides the shape of.
#[derive(Debug, Clone)]
struct State {
    /// Kv heads, width of keys, width of values.
    shape: [usize; 3],
    keys: Arc<[Codewords]>,
    /// Of queries, with the table of their logits.
    queries: Option<(Arc<[Codewords]>, Tables)>,
    /// Of each kv head.
    summaries: Vec<Summary>,
    /// Keys that are not summed up yet, the oldest first: for each kv head its code and value.
    recent: VecDeque<(Vec<u32>, Vec<f32>)>,
}

impl Tallies {
    pub(in crate::mechanism) fn new(options: Held) -> Self {
        Tallies { options, tokens: 0, state: None }
    }

    fn scale(&self, dk: usize) -> f32 {
        self.options.scale.unwrap_or(1.0 / (dk as f32).sqrt())
    }

    /// The state that these tokens fit, made by the first of them.
    fn hold(&mut self, tokens: &Tokens<'_>, par: Par) -> Result<&mut State, Error> {
        tokens.check()?;
        let beside = tokens.key_bias.is_some() || tokens.until.is_some() || tokens.types.is_some() || tokens.type_logits.is_some();
        if beside || tokens.x.is_some() || tokens.threshold.is_some() || tokens.gates.is_some() {
            return Err(Error::Combination(format!("steps of {} read k, v and codebooks only", self.options.name)));
        }
        let shape @ [kv_heads, dk, _] = [tokens.k.shape()[1], tokens.k.shape()[3], tokens.v.shape()[3]];
        let given = codebook("codebook", tokens.codebook, [kv_heads, dk])?;
        let of_queries = tokens.codebook_q.filter(|_| self.options.queries);
        let given_q = match (self.options.queries, of_queries) {
            (true, view) => Some(codebook("codebook_q", view, [view.map_or(kv_heads, |view| view.shape()[1]), dk])?),
            (false, _) => None,
        };
        if self.state.is_none() {
            let scale = self.scale(dk);
            self.state = Some(State::new(shape, (&given, given_q.as_ref()), scale, par));
        }
        let state = self.state.as_mut().expect("made by the first token");
        if state.shape != shape {
            return Err(Error::Shape { tensor: "heads, Dk, Dv", found: shape.to_vec(), expected: state.shape.to_vec() });
        }
        let same = state.queries.as_ref().zip(given_q).is_none_or(|((held, _), given)| are(held, &given));
        if !are(&state.keys, &given) || !same {
            return Err(Error::Combination("codebooks are the same with every token of a sequence".into()));
        }
        Ok(state)
    }

    fn take_in(&mut self, tokens: &Tokens<'_>, par: Par) -> Result<(), Error> {
        let gap = self.options.gap;
        let state = self.hold(tokens, par)?;
        let (count, heads) = (tokens.count(), state.shape[0]);
        let mut codes = vec![0; heads * count];
        for (g, codes) in codes.chunks_mut(count.max(1)).enumerate() {
            state.keys[g].nearest(&tokens.k, [0, g], 0..count, codes, par);
        }
        for token in 0..count {
            let codes = (0..heads).map(|g| codes[g * count + token]).collect();
            state.push(codes, &tokens.v, token, gap);
        }
        state.summaries.iter_mut().for_each(Summary::bring_up_to_date);
        self.tokens += count;
        Ok(())
    }
}

/// Whether these are the codewords that were kept.
fn are(held: &[Codewords], given: &View<'_>) -> bool {
    let [_, heads, count, width] = given.shape();
    let same =
        |h: usize, code: usize| held[h].row(code).iter().enumerate().all(|(d, &x)| x.to_bits() == given.at([0, h, code, d]).to_bits());
    held.len() == heads && held[0].count() == count && held[0].width() == width && (0..heads).all(|h| (0..count).all(|code| same(h, code)))
}

impl State {
    fn new(shape: [usize; 3], (keys, queries): (&View<'_>, Option<&View<'_>>), scale: f32, par: Par) -> Self {
        let keys = codewords(keys);
        let queries = queries.map(|view| {
            let queries = codewords(view);
            let group = (queries.len() / keys.len()).max(1);
            let tables =
                queries.iter().enumerate().map(|(h, queries)| table(queries, &keys[(h / group).min(keys.len() - 1)], scale, par)).collect();
            (queries, tables)
        });
        let summaries = keys.iter().map(|codewords| Summary::new(codewords.count(), shape[2], 0)).collect();
        State { shape, keys, queries, summaries, recent: VecDeque::new() }
    }

    fn push(&mut self, codes: Vec<u32>, v: &View<'_>, token: usize, gap: usize) {
        let [heads, _, width] = self.shape;
        let values: Vec<f32> = (0..heads * width).map(|at| v.at([0, at / width, token, at % width])).collect();
        self.recent.push_back((codes, values));
        while self.recent.len() > gap {
            let (codes, values) = self.recent.pop_front().expect("it is longer than the gap");
            for ((summary, code), value) in self.summaries.iter_mut().zip(codes).zip(values.chunks(width)) {
                summary.add(code as usize, value, 1.0);
            }
        }
    }

    fn bytes(&self) -> usize {
        let token = self.shape[0] * (size_of::<u32>() + self.shape[2] * size_of::<f32>());
        self.summaries.iter().map(Summary::bytes).sum::<usize>() + self.recent.len() * token
    }
}

impl Memory for Tallies {
    fn bytes(&self) -> usize {
        self.state.as_ref().map_or(0, State::bytes)
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    fn prefill(&mut self, tokens: &Tokens<'_>) -> Result<(), Error> {
        self.take_in(tokens, Par::default())
    }

    fn step(&mut self, token: &Token<'_>, out: &mut Output<'_>, par: Par) -> Result<(), Error> {
        token.check(out)?;
        if token.bias.is_some() || token.mask.is_some() {
            return Err(Error::Combination(format!("steps of {} take no bias and no mask: keys are summed up", self.options.name)));
        }
        let ([_, heads, _, dk], kv_heads) = (token.q.shape(), token.kept.k.shape()[1]);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(Error::Heads { heads, kv_heads });
        }
        if let Some(view) = token.kept.codebook_q.filter(|_| self.options.queries) {
            expect("codebook_q", view.shape(), [1, heads, view.shape()[2], dk])?;
        }
        self.take_in(&token.kept, par)?;
        let scale = self.scale(dk);
        let state = self.state.as_ref().expect("a token was taken in");
        let q = widen(&token.q);
        let q = View::from(Strided::contiguous(&q, [1, heads, 1, dk], "q")?);
        let mut codes = vec![0; heads];
        let queries = match &state.queries {
            None => Queries::Rows(q),
            Some((codewords, tables)) => {
                for (h, code) in codes.iter_mut().enumerate() {
                    codewords[h].nearest(&q, [0, h], 0..1, std::slice::from_mut(code), par);
                }
                Queries::Codes { codewords: codewords.clone(), codes: &codes, tables: tables.clone() }
            }
        };
        let dims = Dims { batch: 1, heads, kv_heads, queries: 1, keys: 0, dk, dv: state.shape[2] };
        let nothing: [f32; 0] = [];
        let v = Strided::contiguous(&nothing, [1, kv_heads, 0, dims.dv], "v")?.into();
        let rule = Rule { causal: true, block: 1, gap: 0 };
        let coded = Coded { dims, queries, codewords: state.keys.clone(), codes: &[], v, sequences: Vec::new(), rule, scale };
        coded.step(&state.summaries, out, par)
    }
}
