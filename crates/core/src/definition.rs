//! From a problem to its definition in f64.

use crate::oracle::{self, Definition};
use crate::view::View;
use crate::{Alignment, Problem};

impl Problem<'_> {
    /// The same problem for the oracle: inputs widened, rules copied.
    pub fn definition(&self) -> Definition {
        let dims = &self.dims;
        let rules = &self.sight;
        Definition {
            batch: dims.batch,
            heads: dims.heads,
            kv_heads: dims.kv_heads,
            queries: dims.queries,
            keys: dims.keys,
            dk: dims.dk,
            dv: dims.dv,
            q: widened(&self.q),
            k: widened(&self.k),
            v: widened(&self.v),
            scale: self.written_scale().map(f64::from),
            causal: rules.causal,
            window_left: rules.left,
            window_right: rules.right,
            sinks: rules.sinks,
            top_left: rules.alignment == Alignment::TopLeft,
            lengths: rules.lengths.map(<[_]>::to_vec),
            lengths_q: rules.lengths_q.map(<[_]>::to_vec),
            until: rules.until.map(<[_]>::to_vec),
            key_bias: self.all_key_biases().map(|bias| bias.iter().map(|&x| f64::from(x)).collect()),
            mask: self.dense_mask().map(|mask| dense(mask.shape(), |at| mask.at(at) != 0)),
            bias: self.bias().zip(self.bias_repeats()).map(|(bias, [b, h])| {
                let [_, _, n, m] = bias.shape();
                dense([b, h, n, m], |at| f64::from(bias.at(at)))
            }),
            alibi: self.has_alibi(),
            softcap: self.softcap().map(f64::from),
            dropout: self.dropout().map(|d| oracle::Dropout { probability: f64::from(d.probability), seed: d.seed, step: d.step }),
            offsets_q: rules.offsets.map(|[queries, _]| queries.to_vec()),
            offsets_k: rules.offsets.map(|[_, keys]| keys.to_vec()),
            key_spans: rules.spans.map(<[_]>::to_vec),
            query_positions: rules.positions.map(|[queries, _]| queries.to_vec()),
            key_positions: rules.positions.map(|[_, keys]| keys.to_vec()),
        }
    }
}

fn indices([b, h, n, d]: [usize; 4]) -> impl Iterator<Item = [usize; 4]> {
    (0..b).flat_map(move |b| (0..h).flat_map(move |h| (0..n).flat_map(move |n| (0..d).map(move |d| [b, h, n, d]))))
}

fn widened(view: &View<'_>) -> Vec<f64> {
    indices(view.shape()).map(|at| f64::from(view.at(at))).collect()
}

fn dense<T>(shape: [usize; 4], value: impl Fn([usize; 4]) -> T) -> oracle::Dense<T> {
    oracle::Dense { batch: shape[0], heads: shape[1], values: indices(shape).map(value).collect() }
}
