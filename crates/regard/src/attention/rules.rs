//! What is known of a call without its tensors, kept on the host: visibility, options, the mechanism.

use crate::Error;
use burn::tensor::Tensor;
use regard_core::mechanism::{Exact, Inputs, Mechanism, Pass};

use regard_core::{Dropout, Sight, Strided, View};
use std::ops::Range;
use std::sync::Arc;

#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(super) causal: bool,
    /// Options of exact attention; they must be the defaults where another mechanism is chosen.
    pub(super) exact: Exact,
    pub(super) window: Option<usize>,
    pub(super) mechanism: Option<Mechanism>,
    pub(super) until: Option<Arc<[i64]>>,
    pub(super) types: Option<Arc<[i64]>>,
    pub(super) lengths: Option<Arc<[usize]>>,
    pub(super) lengths_q: Option<Arc<[usize]>>,
    pub(super) offsets: Option<[Arc<[usize]>; 2]>,
    pub(super) spans: Option<Arc<[[usize; 2]]>>,
    pub(super) positions: Option<[Arc<[i64]>; 2]>,
    pub(crate) codebook: Option<Constant>,
    pub(crate) codebook_q: Option<Constant>,
    pub(crate) hyperplanes: Option<Constant>,
    pass: Pass,
}

/// A small tensor without a gradient, on the host: with leading ones it has four dimensions.
#[derive(Debug, Clone)]
pub(crate) struct Constant {
    values: Arc<[f32]>,
    shape: [usize; 4],
}

impl Constant {
    pub(crate) fn read<const D: usize>(x: &Tensor<D>) -> Self {
        let mut shape = [1; 4];
        shape[4 - D..].copy_from_slice(&x.dims());
        Constant { values: x.clone().into_data().iter::<f32>().collect(), shape }
    }

    /// Some of its matrices.
    pub(super) fn of_matrices(&self, range: &Range<usize>) -> Self {
        let [_, _, rows, width] = self.shape;
        let values = &self.values[range.start * rows * width..range.end * rows * width];
        Constant { values: values.into(), shape: [1, range.len(), rows, width] }
    }

    /// A row of one of its matrices.
    pub(crate) fn row(&self, matrix: usize, row: usize) -> &[f32] {
        let [_, _, rows, width] = self.shape;
        &self.values[(matrix * rows + row) * width..][..width]
    }

    fn view(&self) -> View<'_> {
        Strided::contiguous(&self.values, self.shape, "constant").expect("it was read with its shape").into()
    }
}

impl Rules {
    pub(super) fn set_dropout(&mut self, dropout: Dropout) {
        self.exact.dropout = dropout.probability;
        self.pass = Pass { training: true, seed: dropout.seed, step: dropout.step };
    }

    pub(super) fn set_pass(&mut self, pass: Pass) {
        self.pass = pass;
    }

    pub(crate) fn pass(&self) -> Pass {
        self.pass
    }

    /// Valid keys per batch row, where not all are.
    pub(crate) fn key_lengths(&self) -> Option<&[usize]> {
        self.lengths.as_deref()
    }

    /// Valid ones queries per batch row, of so many beside so many keys, where not all are.
    pub(crate) fn query_lengths(&self, [queries, keys]: [usize; 2]) -> Option<&[usize]> {
        self.lengths_q.as_deref().or_else(|| self.lengths.as_deref().filter(|_| queries == keys))
    }

    /// Where packed sequences start among the keys.
    pub(crate) fn key_offsets(&self) -> Option<&[usize]> {
        self.offsets.as_ref().map(|[_, keys]| &keys[..])
    }

    /// The mechanism with its options.
    ///
    /// # Errors
    /// If options of exact attention stand beside another mechanism, or a window is empty.
    pub(super) fn mechanism(&self) -> Result<Mechanism, Error> {
        let mut exact = self.exact.clone();
        if let Some(keys) = self.window {
            let message = || "0 keys: a window has at least 1".to_owned();
            let reach = keys.checked_sub(1).ok_or_else(|| regard_core::Error::Value { name: "window", message: message() })?;
            (exact.window_left, exact.window_right) = (Some(reach), Some(reach));
        }
        match &self.mechanism {
            None => Ok(exact.into()),
            Some(chosen) if exact == Exact::default() => Ok(chosen.clone()),
            Some(chosen) => {
                let message = format!("options of exact attention are set beside the mechanism {}, which has its own", chosen.about().name);
                Err(regard_core::Error::Combination(message).into())
            }
        }
    }

    /// q, k, v with the rules about positions.
    pub(super) fn inputs<'a>(&'a self, [q, k, v]: [View<'a>; 3]) -> Inputs<'a> {
        let mut sight = if self.causal { Sight::causal() } else { Sight::full() };
        if let Some(lengths) = &self.lengths {
            sight = sight.lengths(lengths);
        }
        if let Some(lengths) = &self.lengths_q {
            sight = sight.lengths_q(lengths);
        }
        if let Some([queries, keys]) = &self.offsets {
            sight = sight.offsets(queries, keys);
        }
        if let Some(spans) = &self.spans {
            sight = sight.key_spans(spans);
        }
        if let Some([queries, keys]) = &self.positions {
            sight = sight.positions(queries, keys);
        }
        Inputs {
            until: self.until.as_deref(),
            types: self.types.as_deref(),
            codebook: self.codebook.as_ref().map(Constant::view),
            codebook_q: self.codebook_q.as_ref().map(Constant::view),
            hyperplanes: self.hyperplanes.as_ref().map(Constant::view),
            ..Inputs::new(q, k, v, sight)
        }
    }
}
