//! Candle's CPU flash attention (`candle_nn::attention::flash_attn`), f32 forward, speaking the measuring protocol.
//!
//! Candle reads `[B, N, H, D]` through strides; a transposed view of `[B, H, N, D]` gives it the same bytes in the same
//! order as everybody else, and rows of one head next to each other.

use candle_core::{Device, Tensor as Candle};
use candle_nn::attention::{AttnMask, flash_attn};
use peer_protocol::{Call, Engine, Inputs, Pass, Result, Tensor, seconds_per_call, serve};

fn main() -> Result<()> {
    serve(Peer::default())
}

#[derive(Default)]
struct Peer {
    loaded: Option<Loaded>,
}

struct Loaded {
    q: Candle,
    k: Candle,
    v: Candle,
    scale: f32,
    o: Tensor,
}

impl Engine for Peer {
    fn hello(&self) -> (&'static str, Option<String>) {
        ("candle", None)
    }

    fn load(&mut self, inputs: Inputs) -> Result<()> {
        let scale = 1.0 / (inputs.q.shape[3] as f32).sqrt();
        let o = Tensor::zeros_like(inputs.output_shape(), &inputs.q.data);
        self.loaded = Some(Loaded { q: candle(&inputs.q)?, k: candle(&inputs.k)?, v: candle(&inputs.v)?, scale, o });
        Ok(())
    }

    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
        if pass == Pass::Backward {
            return Err("Candle's CPU flash attention has no backward pass".into());
        }
        call.plain()?;
        let loaded = self.loaded.as_mut().ok_or("nothing is loaded")?;
        let mut o = None;
        let seconds = seconds_per_call(call.repeat, || {
            o = Some(loaded.attention(call.causal)?);
            Ok(())
        })?;
        let o = o.ok_or("no call was made")?;
        loaded.o = Tensor::from_f32(loaded.o.shape, &o.flatten_all()?.to_vec1::<f32>()?);
        Ok(seconds)
    }

    fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>> {
        Ok(vec![("o", &self.loaded.as_ref().ok_or("nothing is loaded")?.o)])
    }
}

impl Loaded {
    fn attention(&self, causal: bool) -> Result<Candle> {
        let (queries, keys) = (self.q.dims()[1], self.k.dims()[1]);
        let mask = match causal {
            true => AttnMask::causal_with_offset(keys.checked_sub(queries).ok_or("more queries than keys")?),
            false => AttnMask::None,
        };
        Ok(flash_attn::<f32>(&self.q, &self.k, &self.v, self.scale, mask, None, None)?)
    }
}

/// A `[B, N, H, D]` view of an aligned copy of `[B, H, N, D]`.
fn candle(tensor: &Tensor) -> Result<Candle> {
    let values = tensor.as_f32().ok_or("only f32 is measured here")?;
    let mut slack = vec![0.0; values.len() + 16];
    let start = slack.as_ptr().align_offset(64);
    slack[start..start + values.len()].copy_from_slice(values);
    let flat = Candle::from_vec(slack, values.len() + 16, &Device::Cpu)?.narrow(0, start, values.len())?;
    Ok(flat.reshape(&tensor.shape)?.transpose(1, 2)?)
}
