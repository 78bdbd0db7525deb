//! A Burn model whose attention is swapped. Three lines change, each marked; its records still load.
//!
//! `cargo run --release -p regard --example migration`

use burn::module::Module;
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Distribution, Tensor};
use regard::{AttentionLayer, AttentionLayerConfig, Error};

/// Before.
#[derive(Module, Debug)]
struct Before {
    norm: LayerNorm,
    attention: MultiHeadAttention,
}

impl Before {
    fn new(device: &Device) -> Self {
        Before {
            norm: LayerNormConfig::new(64).init(device),
            attention: MultiHeadAttentionConfig::new(64, 4).with_dropout(0.0).init(device),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        x.clone() + self.attention.forward(MhaInput::self_attn(self.norm.forward(x))).context
    }
}

/// After.
#[derive(Module, Debug)]
struct After {
    norm: LayerNorm,
    attention: AttentionLayer, // 1: the type
}

impl After {
    fn new(device: &Device) -> Result<Self, Error> {
        Ok(After {
            norm: LayerNormConfig::new(64).init(device),
            attention: AttentionLayerConfig::new(64, 4).init(device)?, // 2: its making
        })
    }

    fn forward(&self, x: Tensor<3>) -> Result<Tensor<3>, Error> {
        Ok(x.clone() + self.attention.forward(self.norm.forward(x))?) // 3: the call
    }
}

fn main() -> Result<(), Error> {
    let device = Device::flex();
    let before = Before::new(&device);
    let after = After::new(&device)?.load_record(before.clone().into_record());
    let x = Tensor::<3>::random([2, 500, 64], Distribution::Normal(0.0, 1.0), &device);
    let apart = (before.forward(x.clone()) - after.forward(x)?).abs().max().into_scalar::<f32>();
    println!("largest difference of the outputs: {apart:e}");
    assert!(apart < 1e-5);
    Ok(())
}
