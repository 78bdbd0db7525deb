//! Attention as a layer: `y = W_o · attention(W_q x, W_k x, W_v x)`, with rotary embedding and norms of q and k in between.
//!
//! Parameters are named as those of [`burn::nn::attention::MultiHeadAttention`] (`query`, `key`, `value`, `output`, each with
//! `weight` and `bias`), so its records load. Unlike there, no N×M weights are stored, a query that sees no key gives the
//! output's bias instead of an average, and key/value heads may be fewer than query heads. Vaswani et al. 2017; Su et al. 2021
//! (rotary); Henry et al. 2020 (norms of q and k); Ainslie et al. 2023 (shared heads).

use crate::modules::{ClusterThreshold, Codebook, GateProjection, Statistics, TypeProjection};
use crate::reduce::{Reducer, Shown, mean_keys};
use crate::rows::{self, Activation, Rotary, Turns};
use crate::{Attention, Dropout, Error, Mechanism, Packed, Pass, attention, attention_scored, attention_traced, door, penalty};
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Bool, DType, Device, FloatDType, Tensor, TensorData};
use regard_core::mechanism::Trace;

/// Sizes of an [`AttentionLayer`].
#[derive(Config, Debug)]
pub struct AttentionLayerConfig {
    /// E, the width of what comes in and goes out.
    pub d_model: usize,
    /// H, query heads.
    pub n_heads: usize,
    /// G, key/value heads, a divisor of H; H without it.
    #[config(default = "None")]
    pub kv_heads: Option<usize>,
    /// D, the width of a head; E/H without it.
    #[config(default = "None")]
    pub head_dim: Option<usize>,
    /// Dropout on the weights while training, in `[0, 1)`.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// ε of RMS norms of every head's q and k; no norms without it.
    #[config(default = "None")]
    pub qk_norm: Option<f64>,
    /// Whether the query projection has a bias.
    #[config(default = true)]
    pub query_bias: bool,
    /// Whether the key projection has a bias.
    #[config(default = true)]
    pub key_bias: bool,
    /// Whether the value projection has a bias.
    #[config(default = true)]
    pub value_bias: bool,
    /// Whether the output projection has a bias.
    #[config(default = true)]
    pub output_bias: bool,
    /// Whether the layer learns types of its keys, for the mechanism `nats`.
    #[config(default = false)]
    pub types: bool,
    /// Where the layer's learned thresholds of heads start, for the mechanism `clustered`; without it there are none.
    #[config(default = "None")]
    pub threshold: Option<f64>,
    /// Whether the layer has gates of keys and outputs, for the mechanism `gated_linear`; of two mechanisms together it gates the outputs of both.
    #[config(default = false)]
    pub gates: bool,
    /// Codewords of keys for each kv head, for the mechanisms `vq` and `vq_qk`; no codebook without it.
    #[config(default = "None")]
    pub codebook: Option<usize>,
    /// Codewords of queries for each query head, for the mechanism `vq_qk`; no codebook without it.
    #[config(default = "None")]
    pub codebook_q: Option<usize>,
    /// Whether the layer learns the shares of two mechanisms in every query head, for sums such as `local~linear`.
    #[config(default = false)]
    pub mix: bool,
    /// How projections start.
    #[config(default = "Initializer::KaimingUniform{gain:1.0/3.0f64.sqrt(), fan_out_only:false}")]
    pub initializer: Initializer,
}

impl AttentionLayerConfig {
    /// With everything that a mechanism does not run without: types, gates, codebooks of as many codewords as it says.
    ///
    /// ```
    /// use burn::tensor::Device;
    /// use regard::mechanism::Vq;
    /// use regard::{Attention, AttentionLayerConfig};
    ///
    /// let vq = Vq { codebook_size: 64, ..Vq::default() }.into();
    /// let layer = AttentionLayerConfig::new(32, 4).for_mechanism(&vq).init(&Device::flex())?;
    /// let layer = layer.attention(Attention::causal().mechanism(vq));
    /// assert_eq!(layer.codebook.unwrap().rows.dims(), [4, 64, 8]);
    /// # Ok::<(), regard::Error>(())
    /// ```
    #[must_use]
    pub fn for_mechanism(self, mechanism: &Mechanism) -> Self {
        let owned = |set: &&&[&str]| set.iter().all(|tensor| OWNED.contains(tensor));
        let needs: &[&str] = mechanism.about().needs.iter().find(owned).copied().unwrap_or_default();
        let codewords = |tensor| mechanism.codewords(tensor).filter(|_| needs.contains(&tensor));
        AttentionLayerConfig {
            types: self.types || needs.contains(&"type_logits"),
            gates: self.gates || needs.contains(&"gates"),
            codebook: codewords("codebook").or(self.codebook),
            codebook_q: codewords("codebook_q").or(self.codebook_q),
            mix: self.mix || needs.contains(&"mix"),
            ..self
        }
    }

    /// A layer of full attention without rotary embedding.
    ///
    /// # Errors
    /// If heads do not divide the width or one another, an option is out of range, or a codebook is empty.
    pub fn init(&self, device: &Device) -> Result<AttentionLayer, Error> {
        let heads = self.heads()?;
        let linear = |from: usize, to: usize, bias: bool| {
            LinearConfig::new(from, to).with_bias(bias).with_initializer(self.initializer.clone()).init(device)
        };
        let norm = || self.qk_norm.map(|epsilon| RmsNormConfig::new(heads.width).with_epsilon(epsilon).init(device));
        let (inner, shared) = (heads.queries * heads.width, heads.keys * heads.width);
        let codebook = self.codebook.map(|count| Codebook::of_keys([heads.keys, count, heads.width], device));
        let codebook_q = self.codebook_q.map(|count| Codebook::of_queries([heads.queries, count, heads.width], device));
        Ok(AttentionLayer {
            query: linear(self.d_model, inner, self.query_bias),
            key: linear(self.d_model, shared, self.key_bias),
            value: linear(self.d_model, shared, self.value_bias),
            output: linear(inner, self.d_model, self.output_bias),
            query_norm: norm(),
            key_norm: norm(),
            types: self.types.then(|| TypeProjection::new(self.d_model, heads.keys, device)),
            threshold: self.threshold.map(|start| ClusterThreshold::new(heads.queries, start, device)),
            gates: self.gates.then(|| GateProjection::new(self.d_model, [heads.queries, heads.width], device)),
            codebook,
            codebook_q,
            mix: self.mix.then(|| Param::from_tensor(Tensor::zeros([heads.queries], device))),
            heads,
            rotary: None,
            attention: Attention::full(),
            dropout: self.dropout as f32,
            storage: None,
        })
    }

    fn heads(&self) -> Result<Heads, Error> {
        let value = |name, message: String| Err(regard_core::Error::Value { name, message }.into());
        let (queries, keys) = (self.n_heads, self.kv_heads.unwrap_or(self.n_heads));
        if queries == 0 || keys == 0 || !queries.is_multiple_of(keys) {
            return value("n_heads", format!("{queries} query heads do not divide over {keys} key/value heads"));
        }
        if self.head_dim.is_none() && !self.d_model.is_multiple_of(queries) {
            return value("n_heads", format!("a width of {} does not divide over {queries} heads: set head_dim", self.d_model));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return value("dropout", format!("{} is outside [0, 1)", self.dropout));
        }
        for (name, codewords) in [("codebook", self.codebook), ("codebook_q", self.codebook_q)] {
            if codewords == Some(0) {
                return value(name, "0 codewords: expected at least 1".to_owned());
            }
        }
        if let Some(epsilon) = self.qk_norm.filter(|epsilon| epsilon.is_nan() || *epsilon <= 0.0) {
            return value("qk_norm", format!("an epsilon of {epsilon} is not above 0"));
        }
        Ok(Heads { queries, keys, width: self.head_dim.unwrap_or(self.d_model / queries) })
    }
}

/// Tensors beside q, k and v that a layer can make of what it owns.
const OWNED: [&str; 5] = ["type_logits", "gates", "codebook", "codebook_q", "mix"];

/// How projections fall into heads.
#[derive(Debug, Clone, Copy)]
struct Heads {
    queries: usize,
    keys: usize,
    width: usize,
}

/// Multi-head attention with its projections. Made by [`AttentionLayerConfig`].
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use regard::{Attention, AttentionLayerConfig};
///
/// let device = Device::flex();
/// let layer = AttentionLayerConfig::new(64, 4).with_kv_heads(Some(2)).init(&device)?;
/// let layer = layer.attention(Attention::causal().window(256));
/// let x = Tensor::<3>::random([2, 10, 64], Distribution::Default, &device);
/// assert_eq!(layer.forward(x)?.dims(), [2, 10, 64]);
/// # Ok::<(), regard::Error>(())
/// ```
#[derive(Module, Debug)]
pub struct AttentionLayer {
    /// `[E, H·D]`.
    pub query: Linear,
    /// `[E, G·D]`.
    pub key: Linear,
    /// `[E, G·D]`.
    pub value: Linear,
    /// `[H·D, E]`.
    pub output: Linear,
    /// RMS norm of every head's query, `[D]`.
    pub query_norm: Option<RmsNorm>,
    /// RMS norm of every head's key, `[D]`.
    pub key_norm: Option<RmsNorm>,
    /// Types of keys, read by a mechanism that chooses by them.
    pub types: Option<TypeProjection>,
    /// Thresholds of heads, read by a mechanism that merges by them.
    pub threshold: Option<ClusterThreshold>,
    /// Gates of keys and outputs, for a mechanism that forgets by them.
    pub gates: Option<GateProjection>,
    /// Codewords of keys, read by a mechanism that quantises them.
    pub codebook: Option<Codebook>,
    /// Codewords of queries, read by a mechanism that quantises them.
    pub codebook_q: Option<Codebook>,
    /// Shares of query heads between two mechanisms, before a sigmoid, `[H]`; they start alike.
    pub mix: Option<Param<Tensor<1>>>,
    #[module(skip)]
    heads: Heads,
    #[module(skip)]
    rotary: Option<Rotary>,
    #[module(skip)]
    attention: Attention,
    #[module(skip)]
    dropout: f32,
    #[module(skip)]
    storage: Option<FloatDType>,
}

/// What a layer reads from a padded batch, as [`burn::nn::attention::MhaInput`].
#[derive(Debug, Clone)]
pub struct LayerInput {
    query: Tensor<3>,
    key: Tensor<3>,
    value: Tensor<3>,
    mask_pad: Option<Tensor<2, Bool>>,
    mask_attn: Option<Tensor<3, Bool>>,
    bias: Option<Tensor<4>>,
    pass: Pass,
}

impl LayerInput {
    /// Queries from `[B, N, E]`, keys and values from `[B, M, E]`.
    pub fn new(query: Tensor<3>, key: Tensor<3>, value: Tensor<3>) -> Self {
        LayerInput { query, key, value, mask_pad: None, mask_attn: None, bias: None, pass: Pass::default() }
    }

    /// All three from `[B, N, E]`.
    pub fn self_attn(x: Tensor<3>) -> Self {
        Self::new(x.clone(), x.clone(), x)
    }

    /// `[B, M]`, true where a key is padding. Read back once; padding at the ends of rows works with every mechanism, other
    /// padding with those that take key biases.
    #[must_use]
    pub fn mask_pad(self, mask: Tensor<2, Bool>) -> Self {
        LayerInput { mask_pad: Some(mask), ..self }
    }

    /// `[B, N, M]`, true where a query may not see a key.
    #[must_use]
    pub fn mask_attn(self, mask: Tensor<3, Bool>) -> Self {
        LayerInput { mask_attn: Some(mask), ..self }
    }

    /// Added to the scores, `[B|1, H|1, N, M]`.
    #[must_use]
    pub fn bias(self, bias: Tensor<4>) -> Self {
        LayerInput { bias: Some(bias), ..self }
    }

    /// Training or not, and what everything random is drawn from; not training without it.
    #[must_use]
    pub fn pass(self, pass: Pass) -> Self {
        LayerInput { pass, ..self }
    }
}

/// What a step of training leaves beside the output of a layer.
#[derive(Debug, Clone)]
pub struct Aside {
    /// What joins the loss, `[1]` in f32: the penalty of what the layer learns to choose by, the commitment of queries and keys to
    /// their codewords; 0 where there is neither.
    pub loss: Tensor<1>,
    /// For [`AttentionLayer::after_step`].
    pub codes: Codes,
}

/// What sequences bring along on their way through the layers of a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Passage<'a> {
    /// Turns of the positions; made by the layer without it.
    pub turns: Option<&'a Turns>,
    /// Training or not, and what everything random is drawn from.
    pub pass: Pass,
    /// Of [`penalty`].
    pub weight: f32,
    /// How many tokens each row stands for, `[T]`: it is attended to in proportion. One each without it.
    pub sizes: Option<&'a [f32]>,
    /// What the logits of each row as a key get added, `[T]`, in place of sizes: a deletion that is being learned.
    pub key_bias: Option<&'a Tensor<1>>,
    /// Who decides behind this layer which tokens go on, and is shown what it reads.
    pub reducer: Option<&'a Reducer>,
}

/// What a layer makes of a [`Passage`].
#[derive(Debug, Clone)]
pub struct Passed {
    /// The output at every token.
    pub tokens: Packed,
    /// What joins the loss and moves codebooks.
    pub aside: Aside,
    /// For [`crate::reduce::reduce`].
    pub shown: Shown,
}

/// What a step of training says of the codes of a layer's keys and queries; nothing where they have none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Codes {
    /// Of keys.
    pub keys: Option<Statistics>,
    /// Of queries.
    pub queries: Option<Statistics>,
}

impl Aside {
    /// Nothing.
    fn none(x: &Packed) -> Self {
        Aside { loss: Tensor::zeros([1], (&x.x().device(), DType::F32)), codes: Codes::default() }
    }
}

impl From<Tensor<3>> for LayerInput {
    fn from(x: Tensor<3>) -> Self {
        Self::self_attn(x)
    }
}

impl AttentionLayer {
    /// What is seen, how it is scored, by which mechanism.
    #[must_use]
    pub fn attention(self, attention: Attention) -> Self {
        AttentionLayer { attention, ..self }
    }

    /// What q, k, v and o are stored in, such as bf16; what the projections are in without it, where parameters stay anyway.
    #[must_use]
    pub fn storage(self, storage: FloatDType) -> Self {
        AttentionLayer { storage: Some(storage), ..self }
    }

    /// Rotary embedding of q and k.
    #[must_use]
    pub fn rotary(self, rotary: Rotary) -> Self {
        AttentionLayer { rotary: Some(rotary), ..self }
    }

    /// Turns of tokens at these positions, to be made once per batch and shared by layers; `None` without rotary embedding.
    ///
    /// # Errors
    /// If the rotary dims are odd or its options are out of range.
    pub fn turns(&self, positions: impl Iterator<Item = usize>) -> Result<Option<Turns>, Error> {
        let turns = |rotary| Turns::new(rotary, positions.map(|position| position as i64).collect::<Vec<_>>());
        self.rotary.map(turns).transpose()
    }

    /// A padded batch, `[B, N, E]` from `[B, N, E]`. Tokens stand at 0, 1, 2 …; fewer queries than keys are the last of them.
    ///
    /// # Errors
    /// The first thing that does not fit, with its numbers.
    pub fn forward(&self, input: impl Into<LayerInput>) -> Result<Tensor<3>, Error> {
        self.attend(self.project_input(input.into())?)
    }

    /// [`AttentionLayer::forward`], and [`penalty`] of its attention, `[1]`.
    ///
    /// # Errors
    /// As [`AttentionLayer::forward`]; also if its mechanism learns nothing that a penalty steers.
    pub fn forward_with_penalty(&self, input: impl Into<LayerInput>, weight: f32) -> Result<(Tensor<3>, Tensor<1>), Error> {
        let heads = self.project_input(input.into())?;
        let penalty = heads.penalty(weight)?;
        Ok((self.attend(heads)?, penalty))
    }

    fn project_input(&self, input: LayerInput) -> Result<Projected, Error> {
        let ([batch, n, _], [_, m, _]) = (input.query.dims(), input.key.dims());
        self.check(&input)?;
        let how = self.visibility(&input)?;
        let first = m.saturating_sub(n);
        let [q, k] = [first..first + n, 0..m].map(|positions| self.turns((0..batch).flat_map(move |_| positions.clone())));
        let turns = [q?, k?];
        self.project([input.query, input.key, input.value], how, turns.each_ref().map(Option::as_ref))
    }

    /// Sequences without padding, none of which sees another. `turns` are those of the positions of `x`, made by
    /// [`AttentionLayer::turns`]; without them they are made here.
    ///
    /// # Errors
    /// The first thing that does not fit, with its numbers.
    pub fn forward_packed(&self, x: &Packed, turns: Option<&Turns>, pass: Pass) -> Result<Packed, Error> {
        let y = self.attend(self.project_packed(x, turns, pass)?)?;
        x.clone().with_x(y.squeeze_dim::<2>(0))
    }

    /// [`AttentionLayer::forward_packed`] while training at a seed and step, and [`penalty`] of its attention, `[1]`.
    ///
    /// # Errors
    /// As [`AttentionLayer::forward_packed`]; also if its mechanism learns nothing that a penalty steers.
    pub fn forward_packed_with_penalty(&self, x: &Packed, pass: Pass, weight: f32) -> Result<(Packed, Tensor<1>), Error> {
        let heads = self.project_packed(x, None, pass)?;
        let penalty = heads.penalty(weight)?;
        Ok((x.clone().with_x(self.attend(heads)?.squeeze_dim::<2>(0))?, penalty))
    }

    /// [`AttentionLayer::forward`], and in a pass of training what joins the loss and moves codebooks. `weight` is that of [`penalty`].
    ///
    /// ```
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use regard::mechanism::Vq;
    /// use regard::{Attention, AttentionLayerConfig, LayerInput, Pass};
    ///
    /// let device = Device::flex().autodiff();
    /// let vq = Vq { codebook_size: 8, ..Vq::default() }.into();
    /// let layer = AttentionLayerConfig::new(32, 4).for_mechanism(&vq).init(&device)?;
    /// let mut layer = layer.attention(Attention::causal().mechanism(vq));
    /// let x = Tensor::<3>::random([2, 20, 32], Distribution::Default, &device);
    /// let input = LayerInput::self_attn(x).pass(Pass { training: true, seed: 1, step: 0 });
    /// let (y, aside) = layer.forward_training(input, 0.0)?;
    /// let gradients = (y.powi_scalar(2).mean() + aside.loss).backward();
    /// layer.after_step(&aside.codes)?; // behind the optimiser's step by these gradients
    /// # let _ = gradients;
    /// # Ok::<(), regard::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`AttentionLayer::forward`]; also if the mechanism lacks an option that its penalty needs.
    pub fn forward_training(&self, input: impl Into<LayerInput>, weight: f32) -> Result<(Tensor<3>, Aside), Error> {
        self.train(self.project_input(input.into())?, weight)
    }

    /// [`AttentionLayer::forward_packed`] as [`AttentionLayer::forward_training`].
    ///
    /// # Errors
    /// As [`AttentionLayer::forward_packed`]; also if the mechanism lacks an option that its penalty needs.
    pub fn forward_packed_training(&self, x: &Packed, turns: Option<&Turns>, pass: Pass, weight: f32) -> Result<(Packed, Aside), Error> {
        let (y, aside) = self.train(self.project_packed(x, turns, pass)?, weight)?;
        Ok((x.clone().with_x(y.squeeze_dim::<2>(0))?, aside))
    }

    /// [`AttentionLayer::forward_packed`] inside a model that may reduce its tokens behind the layer.
    ///
    /// # Errors
    /// As [`AttentionLayer::forward_packed`]; also if the mechanism has no received attention and the reducer reads it, or takes no sizes.
    pub fn forward_passage(&self, x: &Packed, passage: Passage<'_>) -> Result<Passed, Error> {
        let mut heads = self.project_packed(x, passage.turns, passage.pass)?;
        if let Some(sizes) = passage.sizes {
            heads.how = heads.how.key_bias(self.log_sizes(sizes, &heads.qkv[1]));
        } else if let Some(bias) = passage.key_bias {
            heads.how = heads.how.key_bias(self.per_head(bias.clone()));
        }
        let reads = |tensor: &str| passage.reducer.is_some_and(|reducer| reducer.about().tensors.contains(&tensor));
        let keys = reads("keys").then(|| mean_keys(&heads.qkv[1]));
        let (y, aside, score) = if reads("score") {
            let (y, score) = self.attend_scored(heads)?;
            (y, Aside::none(x), Some(score))
        } else {
            let (y, aside) = self.train(heads, passage.weight)?;
            (y, aside, None)
        };
        let shown = Shown { score, keys, sizes: passage.sizes.map(Into::into), gate_logits: None };
        Ok(Passed { tokens: x.clone().with_x(y.squeeze_dim::<2>(0))?, aside, shown })
    }

    fn log_sizes(&self, sizes: &[f32], like: &Tensor<4>) -> Tensor<3> {
        let logs: Vec<f32> = sizes.iter().map(|size| size.ln()).collect();
        let count = logs.len();
        self.per_head(Tensor::from_data(TensorData::new(logs, [count]), &like.device()))
    }

    /// A number for every row, `[T]`, as a bias of keys, `[1, G, T]`.
    fn per_head(&self, bias: Tensor<1>) -> Tensor<3> {
        let [count] = bias.dims();
        bias.reshape([1, 1, count]).expand([1, self.heads.keys, count])
    }

    /// The output and how much each token was attended to, `[T]`.
    fn attend_scored(&self, Projected { qkv: [q, k, v], how, x }: Projected) -> Result<(Tensor<3>, Tensor<1>), Error> {
        let (o, score) = attention_scored(q, k, v, &how)?;
        Ok((self.leave(x, o, &how)?, score.squeeze_dim(0)))
    }

    fn train(&self, heads: Projected, weight: f32) -> Result<(Tensor<3>, Aside), Error> {
        let mut loss = Tensor::<1>::zeros([1], (&heads.qkv[0].device(), DType::F32));
        let training = heads.how.rules.pass().training;
        if training && heads.how.learns() {
            loss = loss + heads.penalty(weight)?;
        }
        if !training || !(heads.how.reads("codebook") || heads.how.reads("codebook_q")) {
            return Ok((self.attend(heads)?, Aside { loss, codes: Codes::default() }));
        }
        let Projected { qkv: [q, k, v], how, x } = heads;
        let (o, traces) = attention_traced(q.clone(), k.clone(), v, &how)?;
        let codes = self.codes([&q, &k], &traces, &how)?;
        for (codebook, tensor) in [(&self.codebook, "codebook"), (&self.codebook_q, "codebook_q")] {
            let beta = how.chosen().map_or(0.0, |mechanism| mechanism.commitment(tensor));
            if let Some(codebook) = codebook.as_ref().filter(|_| beta > 0.0 && how.reads(tensor)) {
                loss = loss + codebook.commitment([&q, &k], &traces, &how)? * beta;
            }
        }
        Ok((self.leave(x, o, &how)?, Aside { loss, codes }))
    }

    fn codes(&self, heads: [&Tensor<4>; 2], traces: &[Trace], how: &Attention) -> Result<Codes, Error> {
        let of = |codebook: &Option<Codebook>, tensor| {
            let codebook = codebook.as_ref().filter(|_| how.reads(tensor));
            codebook.map(|codebook| codebook.statistics(heads, traces, how)).transpose()
        };
        Ok(Codes { keys: of(&self.codebook, "codebook")?, queries: of(&self.codebook_q, "codebook_q")? })
    }

    /// Moves the codebooks, behind the step of the optimiser. Returns how many codes started again.
    ///
    /// # Errors
    /// If the codes are those of another layer.
    pub fn after_step(&mut self, codes: &Codes) -> Result<u64, Error> {
        let mut restarts = 0;
        for (codebook, statistics) in [(&mut self.codebook, &codes.keys), (&mut self.codebook_q, &codes.queries)] {
            if let (Some(codebook), Some(statistics)) = (codebook, statistics) {
                restarts += codebook.after_step(statistics)?;
            }
        }
        Ok(restarts)
    }

    fn project_packed(&self, x: &Packed, turns: Option<&Turns>, pass: Pass) -> Result<Projected, Error> {
        let own = if turns.is_none() { self.turns(x.positions().iter().copied())? } else { None };
        let turns = turns.or(own.as_ref());
        let how = x.attention(self.in_pass(pass));
        let rows = x.x().clone().unsqueeze::<3>();
        self.project([rows.clone(), rows.clone(), rows], how, [turns, turns])
    }

    fn in_pass(&self, pass: Pass) -> Attention {
        let how = self.attention.clone();
        if !pass.training {
            return how;
        }
        if self.dropout == 0.0 {
            return how.pass(pass);
        }
        how.dropout(Dropout { probability: self.dropout, seed: pass.seed, step: pass.step })
    }

    fn check(&self, input: &LayerInput) -> Result<(), Error> {
        let ([batch, n, _], [_, m, _]) = (input.query.dims(), input.key.dims());
        let width = self.query.weight.dims()[0];
        door::expect("query", &input.query.dims(), &[batch, n, width])?;
        door::expect("key", &input.key.dims(), &[batch, m, width])?;
        door::expect("value", &input.value.dims(), &[batch, m, width])?;
        if let Some(mask) = &input.mask_pad {
            door::expect("mask_pad", &mask.dims(), &[batch, m])?;
        }
        input.mask_attn.as_ref().map_or(Ok(()), |mask| door::expect("mask_attn", &mask.dims(), &[batch, n, m]))
    }

    /// The layer's own attention with the masks and biases of a batch.
    fn visibility(&self, input: &LayerInput) -> Result<Attention, Error> {
        let mut how = self.in_pass(input.pass);
        if let Some(mask) = &input.mask_attn {
            how = how.mask(mask.clone().bool_not().unsqueeze_dim(1));
        }
        if let Some(bias) = &input.bias {
            how = how.bias(bias.clone());
        }
        match &input.mask_pad {
            Some(mask) => self.hide_padding(how, mask, input.query.dims()[1]),
            None => Ok(how),
        }
    }

    fn hide_padding(&self, how: Attention, mask: &Tensor<2, Bool>, queries: usize) -> Result<Attention, Error> {
        let [batch, keys] = mask.dims();
        let padding: Vec<bool> = mask.to_data().iter::<bool>().collect();
        let lengths: Vec<usize> = padding.chunks(keys.max(1)).map(|row| row.iter().take_while(|padding| !**padding).count()).collect();
        let trailing = padding.chunks(keys.max(1)).zip(&lengths).all(|(row, &length)| row[length..].iter().all(|padding| *padding));
        if trailing && keys > 0 {
            return Ok(how.lengths(lengths).lengths_q(vec![queries; batch]));
        }
        let dtype = self.query.weight.val().dtype();
        let bias = Tensor::<2>::zeros([batch, keys], (&mask.device(), dtype)).mask_fill(mask.clone(), f32::NEG_INFINITY);
        Ok(how.key_bias(bias.unsqueeze_dim::<3>(1).repeat_dim(1, self.heads.keys)))
    }

    /// `[B, N, E]` for queries, keys and values.
    fn project(&self, x: [Tensor<3>; 3], how: Attention, turns: [Option<&Turns>; 2]) -> Result<Projected, Error> {
        let Heads { queries, keys, width } = self.heads;
        let [q, k, v] = &x;
        let qkv = [
            turned(normed(project(q, &self.query, [queries, width])?, self.query_norm.as_ref())?, turns[0])?,
            turned(normed(project(k, &self.key, [keys, width])?, self.key_norm.as_ref())?, turns[1])?,
            project(v, &self.value, [keys, width])?.swap_dims(1, 2),
        ];
        let qkv = self.storage.map_or(qkv.clone(), |storage| qkv.map(|x| x.cast(storage)));
        let how = self.learned(&x, [&qkv[0], &qkv[1]], how)?;
        let [x, ..] = x;
        Ok(Projected { qkv, how, x })
    }

    /// What a mechanism learns from or looks at beside q, k and v.
    fn learned(&self, [of_queries, of_keys, _]: &[Tensor<3>; 3], heads: [&Tensor<4>; 2], how: Attention) -> Result<Attention, Error> {
        let mut how = how;
        if let Some(threshold) = self.threshold.as_ref().filter(|_| how.reads("threshold")) {
            how = threshold.attention(how);
        }
        if let Some(types) = self.types.as_ref().filter(|_| how.reads("type_logits")) {
            how = types.attention(of_keys.clone(), how)?;
        }
        if let Some(gates) = self.gates.as_ref().filter(|_| how.reads("gates")) {
            how = gates.attention(of_queries.clone(), how)?;
        }
        if let Some(mix) = self.mix.as_ref().filter(|_| how.reads("mix")) {
            how = how.mix(mix.val());
        }
        for (codebook, tensor) in [(&self.codebook, "codebook"), (&self.codebook_q, "codebook_q")] {
            if let Some(codebook) = codebook.as_ref().filter(|_| how.reads(tensor)) {
                how = codebook.attention(heads, how)?;
            }
        }
        Ok(if how.reads("x") { how.hidden_states(of_queries.clone().cast(heads[0].dtype())) } else { how })
    }

    fn attend(&self, Projected { qkv: [q, k, v], how, x }: Projected) -> Result<Tensor<3>, Error> {
        let o = attention(q, k, v, &how)?;
        self.leave(x, o, &how)
    }

    /// `[B, N, E]` of outputs `[B, H, N, D]` and what queries were made from.
    fn leave(&self, x: Tensor<3>, o: Tensor<4>, how: &Attention) -> Result<Tensor<3>, Error> {
        let [batch, heads, n, width] = o.dims();
        let o = if self.storage.is_some() { o.cast(x.dtype()) } else { o };
        let o = match self.gates.as_ref().filter(|_| how.reads("gates")) {
            Some(gates) => gates.output(x, o)?,
            None => o.swap_dims(1, 2).reshape([batch, n, heads * width]),
        };
        apply(o, &self.output)
    }
}

/// Queries, keys and values in heads, how they attend, and what queries were made from.
struct Projected {
    qkv: [Tensor<4>; 3],
    how: Attention,
    x: Tensor<3>,
}

impl Projected {
    fn penalty(&self, weight: f32) -> Result<Tensor<1>, Error> {
        let [q, k, _] = &self.qkv;
        penalty(q, k, &self.how, weight)
    }
}

fn apply<const D: usize>(x: Tensor<D>, linear: &Linear) -> Result<Tensor<D>, Error> {
    rows::linear(x, linear.weight.val(), linear.bias.as_ref().map(|bias| bias.val()), Activation::None)
}

/// `[B, N, heads, width]`.
fn project(x: &Tensor<3>, linear: &Linear, [heads, width]: [usize; 2]) -> Result<Tensor<4>, Error> {
    let [batch, n, _] = x.dims();
    Ok(apply(x.clone(), linear)?.reshape([batch, n, heads, width]))
}

fn normed(x: Tensor<4>, norm: Option<&RmsNorm>) -> Result<Tensor<4>, Error> {
    norm.map_or(Ok(x.clone()), |norm| rows::rms_norm(x, norm.gamma.val(), norm.epsilon as f32))
}

/// `[B, N, heads, width]` as `[B, heads, N, width]`, turned.
fn turned(x: Tensor<4>, turns: Option<&Turns>) -> Result<Tensor<4>, Error> {
    let x = x.swap_dims(1, 2);
    turns.map_or(Ok(x.clone()), |turns| rows::rotary(x, turns))
}
