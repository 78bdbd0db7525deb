//! One pre-norm layer: `a = x + attention(norm(x))`, tokens leave or merge, `y = a + down(f(up(norm(a))))`. Xiong et al. 2020.

use super::leaving::Leaving;
use super::{Mixing, Positions, Precision, Sizes};
use crate::Error;
use burn::module::Module;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use regard::reduce::{Prune, Reducer, Reduction};
use regard::rows::{self, Activation, Rotary, Turns};
use regard::{Attention, AttentionLayer, AttentionLayerConfig, Codes, Packed, Pass, Passage};

/// ε of the norms.
pub(super) const EPSILON: f32 = 1e-5;

/// A layer with its parameters.
#[derive(Module, Debug)]
pub struct Block {
    /// Ahead of attention.
    pub norm: LayerNorm,
    /// With any mechanism.
    pub attention: AttentionLayer,
    /// What every token goes through after it; none where the inner width is 0.
    pub feed: Option<Feed>,
    /// Which tokens do not go on to it.
    pub leaving: Option<Leaving>,
    dropout: Dropout,
    #[module(skip)]
    penalty: f32,
}

/// `down(f(up(norm(x))))`.
#[derive(Module, Debug)]
pub struct Feed {
    /// Ahead of it.
    pub norm: LayerNorm,
    /// `[E, inner]`, or twice as wide where one half gates the other.
    pub up: Linear,
    /// `[inner, E]`.
    pub down: Linear,
    #[module(skip)]
    function: Option<Activation>,
}

/// Hidden states on their way through the layers.
#[derive(Debug, Clone)]
pub struct Flow {
    /// A vector per token that is left.
    pub tokens: Packed,
    /// What became of the tokens of the batch; none where nothing reduces.
    pub reduction: Option<Reduction>,
    /// What keys of later layers get added to their logits, `[T]`: a deletion that is being learned.
    pub dimmed: Option<Tensor<1>>,
    /// What mechanisms add to the loss, `[1]`.
    pub loss: Tensor<1>,
    /// What each layer's codebooks take in behind the optimiser's step.
    pub codes: Vec<Codes>,
    /// Tokens that left each layer.
    pub left: Vec<usize>,
    /// How much each token was attended to in each layer, where that is asked for.
    pub scores: Option<Vec<Tensor<1>>>,
}

impl Flow {
    /// Tokens ahead of the first layer.
    pub fn of(tokens: Packed) -> Self {
        let loss = Tensor::zeros([1], &tokens.x().device());
        Flow { tokens, reduction: None, dimmed: None, loss, codes: Vec::new(), left: Vec::new(), scores: None }
    }

    /// How many tokens each row stands for, where that is not one.
    fn sizes(&self) -> Option<&[f32]> {
        self.reduction.as_ref().map(Reduction::sizes).filter(|sizes| sizes.iter().any(|&size| size != 1.0))
    }
}

impl Block {
    /// Layer `at` as configurations say; `causal`: whether tokens must not see later ones.
    pub(super) fn new(config: &Sizes, mixing: &Mixing, (at, causal): (usize, bool), device: &Device) -> Result<Self, Error> {
        let attention = if causal || mixing.causal { Attention::causal() } else { Attention::full() };
        let layer = AttentionLayerConfig::new(config.width, config.heads)
            .with_kv_heads(Some(config.kv_heads))
            .with_query_bias(config.bias)
            .with_key_bias(config.bias)
            .with_value_bias(config.bias)
            .with_output_bias(config.bias)
            .for_mechanism(&mixing.mechanism)
            .init(device)?
            .attention(attention.mechanism(mixing.mechanism.clone()));
        let layer = match config.positions {
            Positions::Rotary => layer.rotary(Rotary::new(config.width / config.heads)),
            _ => layer,
        };
        let layer = match config.precision {
            Precision::F32 => layer,
            Precision::Bf16 => layer.storage(FloatDType::BF16),
        };
        Ok(Block {
            norm: LayerNormConfig::new(config.width).with_epsilon(f64::from(EPSILON)).init(device),
            attention: layer,
            feed: (config.inner > 0).then(|| Feed::new(config, device)),
            leaving: Leaving::new(mixing, at, config.width, device)?,
            dropout: DropoutConfig::new(config.dropout).init(),
            penalty: mixing.penalty,
        })
    }

    /// What tokens come to behind layer `at`.
    pub(super) fn forward(&self, flow: Flow, turns: Option<&Turns>, pass: Pass, at: usize) -> Result<Flow, Error> {
        let x = flow.tokens.x().clone();
        let normed = flow.tokens.clone().with_x(normed(&self.norm, x.clone())?)?;
        let scores = Reducer::Prune(Prune::default());
        let asked = flow.scores.is_some().then_some(&scores);
        let reducer = self.leaving.as_ref().map(Leaving::reducer).or(asked);
        let passage = Passage { turns, pass, weight: self.penalty, sizes: flow.sizes(), key_bias: flow.dimmed.as_ref(), reducer };
        let passed = self.attention.forward_passage(&normed, passage)?;
        let tokens = flow.tokens.clone().with_x(x + self.dropout.forward(passed.tokens.into_x()))?;
        let mut flow = Flow { tokens, loss: flow.loss + passed.aside.loss, ..flow };
        flow.codes.push(passed.aside.codes);
        if let Some(scores) = &mut flow.scores {
            scores.extend(passed.shown.score.clone());
        }
        if let Some(leaving) = &self.leaving {
            flow = leaving.apply(flow, passed.shown, pass, at)?;
        }
        if let Some(feed) = &self.feed {
            let x = flow.tokens.x().clone();
            flow.tokens = flow.tokens.with_x(x.clone() + self.dropout.forward(feed.forward(x)?))?;
        }
        flow.left.push(flow.tokens.tokens());
        Ok(flow)
    }
}

impl Feed {
    fn new(config: &Sizes, device: &Device) -> Self {
        let function = config.activation.function();
        let up = if function.is_some() { config.inner } else { 2 * config.inner };
        let linear = |from: usize, to: usize| LinearConfig::new(from, to).with_bias(config.bias).init(device);
        Feed {
            norm: LayerNormConfig::new(config.width).with_epsilon(f64::from(EPSILON)).init(device),
            up: linear(config.width, up),
            down: linear(config.inner, config.width),
            function,
        }
    }

    fn forward(&self, x: Tensor<2>) -> Result<Tensor<2>, Error> {
        let up = applied(&self.up, normed(&self.norm, x)?, self.function.unwrap_or(Activation::None))?;
        let inner = if self.function.is_some() {
            up
        } else {
            let half = up.dims()[1] / 2;
            rows::swiglu(up.clone().narrow(1, 0, half), up.narrow(1, half, half))?
        };
        applied(&self.down, inner, Activation::None)
    }
}

pub(super) fn normed(norm: &LayerNorm, x: Tensor<2>) -> Result<Tensor<2>, Error> {
    Ok(rows::layer_norm(x, norm.gamma.val(), norm.beta.as_ref().map(|beta| beta.val()), EPSILON)?)
}

pub(super) fn applied(linear: &Linear, x: Tensor<2>, f: Activation) -> Result<Tensor<2>, Error> {
    Ok(rows::linear(x, linear.weight.val(), linear.bias.as_ref().map(|bias| bias.val()), f)?)
}
