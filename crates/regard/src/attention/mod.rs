//! Attention of tensors: `o_i = Σ_j softmax_j(s_ij) v_j`, `s = cap(scale · q·k) + key_bias + bias + ALiBi` over visible keys.
//!
//! q `[B,H,N,Dk]`, k `[B,G,M,Dk]`, v `[B,G,M,Dv]`, o `[B,H,N,Dv]`; H is a multiple of G, query head h reads kv head
//! `h / (H/G)`. A query that sees no key gives zeros. Vaswani et al. 2017; kernels as in `regard-core`.

mod coded;
pub(crate) mod composed;
mod factored;
pub(crate) mod fused;
mod host;
mod joined;
mod merged;
mod penalty;
mod rules;
mod sorted;
mod typed;

pub(crate) use host::Read;
pub use penalty::penalty;

use crate::{Error, door};
use burn::tensor::{Bool, Tensor, TensorData};
use regard_core::mechanism::{Mechanism, Pass, Trace};
use regard_core::{Alignment, Dropout};
use rules::{Constant, Rules};
use std::sync::{Arc, OnceLock};

/// How to attend: which keys a query sees, how a score is made, by which mechanism.
///
/// ```
/// use regard::Attention;
/// let recent = Attention::causal().window(256).sinks(4); // the 256 most recent keys and the first four
/// ```
#[derive(Debug, Clone, Default)]
pub struct Attention {
    pub(crate) rules: Arc<Rules>,
    key_bias: Option<Tensor<3>>,
    bias: Option<Tensor<4>>,
    mask: Option<Tensor<4, Bool>>,
    learned: Learned,
    unfused: bool,
}

/// What some mechanisms learn from, beside q, k and v.
#[derive(Debug, Clone, Default)]
struct Learned {
    x: Option<Tensor<3>>,
    type_logits: Option<Tensor<4>>,
    threshold: Option<Tensor<1>>,
    gates: Option<Tensor<4>>,
    mix: Option<Tensor<1>>,
}

/// What is wanted beside the output: left here by the forward pass.
#[derive(Debug, Clone, Default)]
struct Asked {
    scores: Option<Arc<OnceLock<Vec<f32>>>>,
    traces: Option<Arc<OnceLock<Vec<Trace>>>>,
}

impl Attention {
    /// Every query sees every key.
    pub fn full() -> Self {
        Self::default()
    }

    /// A query sees keys at positions up to its own.
    pub fn causal() -> Self {
        Self::default().with(|rules| rules.causal = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.rules));
        self
    }

    /// Another mechanism than exact attention, with its own options in place of the ones here.
    #[must_use]
    pub fn mechanism(self, mechanism: impl Into<Mechanism>) -> Self {
        self.with(|rules| rules.mechanism = Some(mechanism.into()))
    }

    /// The `keys` most recent positions, a query's own included; without causal also as many ahead. At least 1.
    #[must_use]
    pub fn window(self, keys: usize) -> Self {
        self.with(|rules| rules.window = Some(keys))
    }

    /// `|reach|` to the left and to the right of a query's own position, both inclusive; `None` is unlimited.
    #[must_use]
    pub fn reach(self, left: Option<usize>, right: Option<usize>) -> Self {
        self.with(|rules| (rules.exact.window_left, rules.exact.window_right) = (left, right))
    }

    /// Keys `j < sinks` are excepted from the left reach of a window.
    #[must_use]
    pub fn sinks(self, sinks: usize) -> Self {
        self.with(|rules| rules.exact.sinks = sinks)
    }

    /// Where queries stand when N ≠ M.
    #[must_use]
    pub fn alignment(self, alignment: Alignment) -> Self {
        self.with(|rules| rules.exact.alignment = alignment)
    }

    /// Lifetimes `[B, G, M]`, row-major: key `j` is hidden from queries at positions `>= until_j`; M and more is for ever.
    #[must_use]
    pub fn until(self, until: impl Into<Arc<[i64]>>) -> Self {
        self.with(|rules| rules.until = Some(until.into()))
    }

    /// Valid keys per batch row, `[B]`.
    #[must_use]
    pub fn lengths(self, lengths: impl Into<Arc<[usize]>>) -> Self {
        self.with(|rules| rules.lengths = Some(lengths.into()))
    }

    /// Valid queries per batch row, `[B]`; without it the key lengths if `N = M`, else `N`. Rows behind give zeros.
    #[must_use]
    pub fn lengths_q(self, lengths: impl Into<Arc<[usize]>>) -> Self {
        self.with(|rules| rules.lengths_q = Some(lengths.into()))
    }

    /// Packed sequences (`B = 1`): sequence `s` has queries `queries[s]..queries[s+1]` and keys `keys[s]..keys[s+1]`.
    #[must_use]
    pub fn offsets(self, queries: impl Into<Arc<[usize]>>, keys: impl Into<Arc<[usize]>>) -> Self {
        self.with(|rules| rules.offsets = Some([queries.into(), keys.into()]))
    }

    /// Ragged caches: `[B, G]` pairs (start, count) of valid keys along M.
    #[must_use]
    pub fn key_spans(self, spans: impl Into<Arc<[[usize; 2]]>>) -> Self {
        self.with(|rules| rules.spans = Some(spans.into()))
    }

    /// Positions that rules compare instead of indices: queries `[B, N]`, keys `[B, G, M]`, row-major.
    #[must_use]
    pub fn positions(self, queries: impl Into<Arc<[i64]>>, keys: impl Into<Arc<[i64]>>) -> Self {
        self.with(|rules| rules.positions = Some([queries.into(), keys.into()]))
    }

    /// The factor on `q·k`; `1/√Dk` without it.
    #[must_use]
    pub fn scale(self, scale: f32) -> Self {
        self.with(|rules| rules.exact.scale = Some(scale))
    }

    /// `cap·tanh(s/cap)`, before biases.
    #[must_use]
    pub fn softcap(self, cap: f32) -> Self {
        self.with(|rules| rules.exact.softcap = Some(cap))
    }

    /// `-slope_h · |p(i) - j|`, Press et al. 2022.
    #[must_use]
    pub fn alibi(self) -> Self {
        self.with(|rules| rules.exact.alibi = true)
    }

    /// Dropout on the weights, a function of (seed, step, batch row or sequence, head, query, key) alone. It acts whenever
    /// it is set: leave it out at inference.
    #[must_use]
    pub fn dropout(self, dropout: Dropout) -> Self {
        self.with(|rules| rules.set_dropout(dropout))
    }

    /// Added to every score of a key, `[B, G, M]`; -inf hides it. It may be tracked.
    #[must_use]
    pub fn key_bias(self, bias: Tensor<3>) -> Self {
        Attention { key_bias: Some(bias), ..self }
    }

    /// Added to single scores, `[B|1, H|1, N, M]`; -inf hides. It may be tracked.
    #[must_use]
    pub fn bias(self, bias: Tensor<4>) -> Self {
        Attention { bias: Some(bias), ..self }
    }

    /// Hidden states `[B, N, E]`, for mechanisms that look at tokens as a whole. They may be tracked.
    #[must_use]
    pub fn hidden_states(mut self, x: Tensor<3>) -> Self {
        self.learned.x = Some(x);
        self
    }

    /// Types of keys `[B, G, M]`, row-major, or of queries `[B, H, N]`, for `nats`: 0 global, 1 local, 2 window.
    #[must_use]
    pub fn types(self, types: impl Into<Arc<[i64]>>) -> Self {
        self.with(|rules| rules.types = Some(types.into()))
    }

    /// What `nats` chooses types by, `[B, G, M, 3]` or `[B, H, N, 3]`: the largest. They may be tracked; gradients go straight
    /// through the choice.
    #[must_use]
    pub fn type_logits(mut self, logits: Tensor<4>) -> Self {
        self.learned.type_logits = Some(logits);
        self
    }

    /// A threshold for every query head, `[H]`, for `clustered`. It may be tracked.
    #[must_use]
    pub fn threshold(mut self, threshold: Tensor<1>) -> Self {
        self.learned.threshold = Some(threshold);
        self
    }

    /// Logarithms of gates `[B, H, N, Dk]`, at most 0, for `gated_linear`. They may be tracked.
    #[must_use]
    pub fn gates(mut self, gates: Tensor<4>) -> Self {
        self.learned.gates = Some(gates);
        self
    }

    /// Shares of query heads between two mechanisms before a sigmoid `[H]`, for sums such as `local~linear`
    /// ([`crate::mechanism::combined`]). They may be tracked.
    #[must_use]
    pub fn mix(mut self, mix: Tensor<1>) -> Self {
        self.learned.mix = Some(mix);
        self
    }

    /// Codewords of keys `[G, S, Dk]`, for `vq` and `vq_qk`. They have no gradient and are read back here, once.
    #[must_use]
    pub fn codebook(self, codewords: Tensor<3>) -> Self {
        self.with(|rules| rules.codebook = Some(Constant::read(&codewords)))
    }

    /// Codewords of queries `[H, S, Dk]`, for `vq_qk`; as [`Attention::codebook`].
    #[must_use]
    pub fn codebook_q(self, codewords: Tensor<3>) -> Self {
        self.with(|rules| rules.codebook_q = Some(Constant::read(&codewords)))
    }

    /// Normals of hyperplanes `[Dk, bits]`, for `hyper`, which draws them from the seed without it. Read back here, once.
    #[must_use]
    pub fn hyperplanes(self, normals: Tensor<2>) -> Self {
        self.with(|rules| rules.hyperplanes = Some(Constant::read(&normals)))
    }

    /// Whether this call is one of training, with the seed and step that whatever is random depends on.
    #[must_use]
    pub fn pass(self, pass: Pass) -> Self {
        self.with(|rules| rules.set_pass(pass))
    }

    /// `[B|1, H|1, N, M]`, true = may attend. (The masks of `burn::nn::attention` say the opposite.)
    #[must_use]
    pub fn mask(self, mask: Tensor<4, Bool>) -> Self {
        Attention { mask: Some(mask), ..self }
    }

    /// Tensor operations even where there is a fused kernel: slower, N×M memory under autodiff, an independent gradient.
    #[must_use]
    pub fn unfused(self) -> Self {
        Attention { unfused: true, ..self }
    }

    /// Whether the mechanism can be given a tensor of this name.
    pub fn reads(&self, tensor: &str) -> bool {
        self.rules.mechanism.as_ref().is_some_and(|mechanism| mechanism.about().tensors.contains(&tensor))
    }

    /// The mechanism that was chosen; none is exact attention.
    pub(crate) fn chosen(&self) -> Option<&Mechanism> {
        self.rules.mechanism.as_ref()
    }

    /// Whether the mechanism of this call learns from something that a penalty steers.
    pub(crate) fn learns(&self) -> bool {
        self.learned.type_logits.is_some() || self.learned.threshold.is_some()
    }

    /// Whether fused kernels run a call.
    pub(crate) fn is_fused(&self, q: &Tensor<4>) -> bool {
        door::has_kernels(q) && !self.unfused
    }

    pub(crate) fn check(&self, [q, k, v]: [&Tensor<4>; 3]) -> Result<(), Error> {
        door::plain_float(q, "q")?;
        for (tensor, x) in [("k", k), ("v", v)] {
            door::same_device(q, tensor, x)?;
            door::same_dtype(q, ("q", tensor), x)?;
        }
        if let Some(bias) = &self.bias {
            door::same_device(q, "bias", bias)?;
            door::plain_float(bias, "bias")?;
        }
        if let Some(bias) = &self.key_bias {
            door::same_device(q, "key_bias", bias)?;
            door::plain_float(bias, "key_bias")?;
            let [batch, heads, keys, _] = k.dims();
            door::expect("key_bias", &bias.dims(), &[batch, heads, keys])?;
        }
        self.check_learned(q)?;
        self.mask.as_ref().map_or(Ok(()), |mask| door::same_place(q, "mask", mask))
    }

    fn check_learned(&self, q: &Tensor<4>) -> Result<(), Error> {
        let Learned { x, type_logits, threshold, gates, mix } = &self.learned;
        if let Some(gates) = gates {
            door::same_device(q, "gates", gates)?;
            door::plain_float(gates, "gates")?;
            door::expect("gates", &gates.dims(), &q.dims())?;
        }
        if let Some(x) = x {
            door::same_device(q, "x", x)?;
            door::same_dtype(q, ("q", "x"), x)?;
            let ([batch, _, queries, _], [.., width]) = (q.dims(), x.dims());
            door::expect("x", &x.dims(), &[batch, queries, width])?;
        }
        if let Some(logits) = type_logits {
            door::same_device(q, "type_logits", logits)?;
            door::plain_float(logits, "type_logits")?;
        }
        for (tensor, of_heads) in [("threshold", threshold), ("mix", mix)] {
            if let Some(of_heads) = of_heads {
                door::same_device(q, tensor, of_heads)?;
                door::plain_float(of_heads, tensor)?;
                door::expect(tensor, &of_heads.dims(), &[q.dims()[1]])?;
            }
        }
        Ok(())
    }
}

/// Attention of `q [B,H,N,Dk]` over `k [B,G,M,Dk]`, `v [B,G,M,Dv]`: `o [B,H,N,Dv]` of q's dtype and device.
///
/// On Burn's CPU device, in f32, bf16 and f16, the fused kernels run on the tensors where they stand, whatever their
/// strides, and gradients are computed for tracked tensors only. On other devices and in f64 it is made of tensor
/// operations in blocks of queries, under Burn's autodiff. There a value of a hidden key that is not finite spreads.
///
/// # Errors
/// The first thing that does not fit, with its numbers: shapes, dtypes, devices, options.
pub fn attention(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, how: &Attention) -> Result<Tensor<4>, Error> {
    how.check([&q, &k, &v])?;
    if how.is_fused(&q) { fused::attention([q, k, v], how) } else { composed::attention([q, k, v], how) }
}

/// [`attention`], and how much every key was attended to: the score `[B, M]` of [`crate::reduce::received_score`] as a constant. Fused
/// kernels take it from the sums that attention has already made.
///
/// # Errors
/// As [`attention`]; also if the mechanism has no received attention.
pub fn attention_scored(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, how: &Attention) -> Result<(Tensor<4>, Tensor<2>), Error> {
    how.check([&q, &k, &v])?;
    if !how.is_fused(&q) {
        let score = composed::score(q.clone().detach(), k.clone().detach(), how)?.detach();
        return Ok((composed::attention([q, k, v], how)?, score));
    }
    let (batch, keys, device) = (k.dims()[0], k.dims()[2], q.device());
    let scores = Arc::new(OnceLock::new());
    let o = fused::asked([q, k, v], how, Asked { scores: Some(scores.clone()), traces: None })?;
    let score = scores.get().cloned().unwrap_or_default();
    Ok((o, Tensor::from_data(TensorData::new(score, [batch, keys]), &device)))
}

/// [`attention`], and what its mechanism chose: clusters, codes, orders. Nothing is chosen twice.
///
/// # Errors
/// As [`attention`].
pub fn attention_traced(q: Tensor<4>, k: Tensor<4>, v: Tensor<4>, how: &Attention) -> Result<(Tensor<4>, Vec<Trace>), Error> {
    how.check([&q, &k, &v])?;
    let traces = Arc::new(OnceLock::new());
    let asked = Asked { scores: None, traces: Some(traces.clone()) };
    let o = if how.is_fused(&q) { fused::asked([q, k, v], how, asked) } else { composed::asked([q, k, v], how, asked) }?;
    Ok((o, traces.get().cloned().unwrap_or_default()))
}
