//! Burn's attention (`burn::tensor::module::attention`) on its CPU device `flex`, f32 forward, speaking the measuring protocol.

use burn::tensor::{Device, Tensor as Burn, TensorData, module::attention, ops::AttentionModuleOptions};
use peer_protocol::{Call, Engine, Inputs, Pass, Result, Tensor, seconds_per_call, serve};

fn main() -> Result<()> {
    serve(Peer::default())
}

#[derive(Default)]
struct Peer {
    loaded: Option<Loaded>,
}

struct Loaded {
    q: Burn<4>,
    k: Burn<4>,
    v: Burn<4>,
    o: Tensor,
}

impl Engine for Peer {
    fn hello(&self) -> (&'static str, Option<String>) {
        ("burn", None)
    }

    fn load(&mut self, inputs: Inputs) -> Result<()> {
        let o = Tensor::zeros_like(inputs.output_shape(), &inputs.q.data);
        self.loaded = Some(Loaded { q: burn(&inputs.q)?, k: burn(&inputs.k)?, v: burn(&inputs.v)?, o });
        Ok(())
    }

    fn run(&mut self, pass: Pass, call: &Call) -> Result<f64> {
        if pass == Pass::Backward {
            return Err("only the forward pass is measured here".into());
        }
        call.plain()?;
        let loaded = self.loaded.as_mut().ok_or("nothing is loaded")?;
        let mut o = None;
        let seconds = seconds_per_call(call.repeat, || {
            o = Some(loaded.attention(call.causal)?);
            Ok(())
        })?;
        let data = o.ok_or("no call was made")?.into_data();
        loaded.o = Tensor::from_f32(loaded.o.shape, data.as_slice::<f32>().map_err(|error| format!("{error:?}"))?);
        Ok(seconds)
    }

    fn outputs(&self) -> Result<Vec<(&'static str, &Tensor)>> {
        Ok(vec![("o", &self.loaded.as_ref().ok_or("nothing is loaded")?.o)])
    }
}

impl Loaded {
    fn attention(&self, causal: bool) -> Result<Burn<4>> {
        if causal && self.q.dims()[2] != self.k.dims()[2] {
            return Err("Burn's causal mask starts at the top left: as many queries as keys, please".into());
        }
        let options = AttentionModuleOptions { is_causal: causal, ..Default::default() };
        Ok(attention(self.q.clone(), self.k.clone(), self.v.clone(), None, None, options))
    }
}

/// On the CPU, in memory that Burn allocates (it offers no alignment beyond 16 bytes).
fn burn(tensor: &Tensor) -> Result<Burn<4>> {
    let values = tensor.as_f32().ok_or("only f32 is measured here")?;
    Ok(Burn::from_data(TensorData::new(values.to_vec(), tensor.shape), &Device::flex()))
}
