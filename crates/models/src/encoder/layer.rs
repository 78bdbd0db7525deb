//! One layer: `a = norm(x + out(attention(x)))`, `y = norm(a + narrow(f(widen(a))))` (post-norm, Devlin et al. 2018). q, k and v are one
//! product.

use super::config::Config;
use super::weights::{LayerWeights, Pair};
use crate::Error;
use crate::checkpoint::Slot;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use regard::reduce::received_score;
use regard::rows::{Activation, layer_norm_added, linear};
use regard::{Attention, attention, attention_scored};

/// A linear map: weight `[in, out]`, bias `[out]`.
#[derive(Module, Debug)]
pub(super) struct Map {
    weight: Param<Tensor<2>>,
    bias: Param<Tensor<1>>,
}

impl Map {
    /// Several maps of the same inputs side by side; their weights are stored `[out, in]`.
    fn load(maps: &[&Pair<'_>], inputs: usize, device: &Device) -> Self {
        let bias: Vec<f32> = maps.iter().flat_map(|[_, bias]| bias.values()).collect();
        let out = bias.len();
        let mut weight = vec![0.0; inputs * out];
        let mut first = 0;
        for [stored, _] in maps {
            first += turn(&stored.values(), inputs, (&mut weight, out), first);
        }
        Map { weight: parameter(weight, [inputs, out], device), bias: parameter(bias, [out], device) }
    }

    fn apply(&self, x: Tensor<2>, f: Activation) -> Result<Tensor<2>, Error> {
        Ok(linear(x, self.weight.val(), Some(self.bias.val()), f)?)
    }
}

/// Writes `[out, inputs]` as columns from `first` on; returns their number.
fn turn(from: &[f32], inputs: usize, (into, width): (&mut [f32], usize), first: usize) -> usize {
    const SQUARE: usize = 32;
    let out = from.len() / inputs;
    for rows in (0..out).step_by(SQUARE) {
        for columns in (0..inputs).step_by(SQUARE) {
            for column in columns..inputs.min(columns + SQUARE) {
                let to = &mut into[column * width + first..][..out];
                for row in rows..out.min(rows + SQUARE) {
                    to[row] = from[row * inputs + column];
                }
            }
        }
    }
    out
}

/// Values of a checkpoint as a parameter.
pub(super) fn parameter<const D: usize>(values: Vec<f32>, shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

/// The norm of a sum.
#[derive(Module, Debug)]
pub(super) struct Norm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    #[module(skip)]
    epsilon: f32,
}

impl Norm {
    pub(super) fn load([weight, bias]: &Pair<'_>, epsilon: f32, device: &Device) -> Self {
        let vector = |slot: &Slot<'_>| {
            let values = slot.values();
            let length = values.len();
            parameter(values, [length], device)
        };
        Norm { weight: vector(weight), bias: vector(bias), epsilon }
    }

    /// `norm(x + residual)`.
    pub(super) fn added(&self, x: Tensor<2>, residual: Tensor<2>) -> Result<Tensor<2>, Error> {
        Ok(layer_norm_added(x, residual, self.weight.val(), Some(self.bias.val()), self.epsilon)?)
    }
}

/// A layer with its parameters.
#[derive(Module, Debug)]
pub(super) struct Layer {
    #[module(skip)]
    heads: usize,
    qkv: Map,
    out: Map,
    attention_norm: Norm,
    widen: Map,
    #[module(skip)]
    activation: Activation,
    narrow: Map,
    output_norm: Norm,
}

impl Layer {
    pub(super) fn load(weights: &LayerWeights<'_>, config: &Config, device: &Device) -> Self {
        let &Config { width, inner, heads, activation, epsilon, .. } = config;
        Layer {
            heads,
            qkv: Map::load(&weights.qkv.each_ref(), width, device),
            out: Map::load(&[&weights.out], width, device),
            attention_norm: Norm::load(&weights.attention_norm, epsilon, device),
            widen: Map::load(&[&weights.widen], width, device),
            activation,
            narrow: Map::load(&[&weights.narrow], inner, device),
            output_norm: Norm::load(&weights.output_norm, epsilon, device),
        }
    }

    /// Attention and what follows it, `norm(x + out(attention(x)))`: x and the result are `[T, E]`; `how` knows where sequences begin.
    /// `scored`: whether scores are wanted.
    pub(super) fn mix(&self, x: Tensor<2>, how: &Attention, scored: bool) -> Result<Mixed, Error> {
        let [tokens, width] = x.dims();
        let qkv = self.qkv.apply(x.clone(), Activation::None)?.reshape([1, tokens, 3 * self.heads, width / self.heads]).swap_dims(1, 2);
        let [q, k, v] = [0, 1, 2].map(|part| qkv.clone().narrow(1, part * self.heads, self.heads));
        let (o, score) = if scored {
            let (o, score) = attention_scored(q, k.clone(), v, how)?;
            (o, Some(score.squeeze_dim(0)))
        } else {
            (attention(q, k.clone(), v, how)?, None)
        };
        let seen = self.out.apply(o.swap_dims(1, 2).reshape([tokens, width]), Activation::None)?;
        Ok(Mixed { x: self.attention_norm.added(seen, x)?, k, score })
    }

    /// How much each token is attended to, `[T]`, and nothing else of the layer.
    pub(super) fn score(&self, x: Tensor<2>, how: &Attention) -> Result<Tensor<1>, Error> {
        let [tokens, width] = x.dims();
        let (weight, bias) = (self.qkv.weight.val().narrow(1, 0, 2 * width), self.qkv.bias.val().narrow(0, 0, 2 * width));
        let qk = linear(x, weight, Some(bias), Activation::None)?.reshape([1, tokens, 2 * self.heads, width / self.heads]).swap_dims(1, 2);
        let [q, k] = [0, 1].map(|part| qk.clone().narrow(1, part * self.heads, self.heads));
        Ok(received_score(q, k, how)?.squeeze_dim(0))
    }

    /// The feed-forward block, `norm(x + narrow(f(widen(x))))`.
    pub(super) fn feed(&self, x: Tensor<2>) -> Result<Tensor<2>, Error> {
        let inner = self.widen.apply(x.clone(), self.activation)?;
        self.output_norm.added(self.narrow.apply(inner, Activation::None)?, x)
    }

    /// H.
    pub(super) fn heads(&self) -> usize {
        self.heads
    }
}

/// Tokens behind attention, and what a reducer may look at.
pub(super) struct Mixed {
    /// `[T, E]`.
    pub(super) x: Tensor<2>,
    /// `[1, H, T, D]`.
    pub(super) k: Tensor<4>,
    /// How much each token was attended to, `[T]`, if asked for.
    pub(super) score: Option<Tensor<1>>,
}

#[cfg(test)]
mod tests {
    use super::turn;

    #[test]
    fn weights_are_turned_into_their_columns() {
        let (out, inputs, width) = (35, 67, 40);
        let from: Vec<f32> = (0..out * inputs).map(|i| i as f32).collect();
        let mut into = vec![-1.0; inputs * width];
        assert_eq!(turn(&from, inputs, (&mut into, width), 5), out);
        for (at, &value) in into.iter().enumerate() {
            let (row, column) = (at / width, at % width);
            let expected = if column < 5 { -1.0 } else { from[(column - 5) * inputs + row] };
            assert_eq!(value, expected, "[{row}, {column}]");
        }
    }
}
