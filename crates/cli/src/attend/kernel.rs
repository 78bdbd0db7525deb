//! The mechanism's parallel form: all queries at once.

use super::{Call, Named};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::Inputs;
use regard_core::{Dims, Error, Gradients, Output, Saved};

/// o, lse and whatever else the call wants.
pub fn attend(call: &Call<'_>, mut loaded: Loaded) -> Result<Vec<Named>, Error> {
    let own = Own { key_bias: loaded.key_bias.as_ref().and_then(Tensor::float), bias: loaded.bias.as_ref().and_then(Tensor::float) };
    loaded.key_bias = loaded.key_bias.map(|bias| bias.converted(Float::F32));
    let inputs = loaded.inputs(call.causal)?;
    let mechanism = &call.chosen.mechanism;
    let Dims { batch, heads, queries, keys, dv, .. } = *mechanism.problem(&inputs, call.pass)?.dims();

    let mut o = Tensor::zeros(loaded.float, &[batch, heads, queries, dv]);
    let mut lse = Tensor::zeros(Float::F32, &[batch, heads, queries]);
    let mut output = Output { o: o.view_mut("o")?, lse: Some(lse.as_f32_mut()) };
    mechanism.forward(&inputs, call.pass, &mut output, call.par)?;

    let mut results = Vec::new();
    if call.received {
        let mut received = Tensor::zeros(Float::F32, &[batch, heads, keys]);
        mechanism.received(&inputs, lse.as_f32(), received.as_f32_mut(), call.par)?;
        results.push(("received", received));
    }
    if let Some(d_o) = &loaded.d_o {
        let saved = Saved { o: o.view("o")?, lse: lse.as_f32(), d_o: d_o.view("do")? };
        results.extend(gradients(call, &loaded, (&inputs, &saved), own)?);
    }
    results.push(("o", o));
    if call.chosen.about().traces.contains(&"lse") {
        results.push(("lse", lse));
    }
    Ok(results)
}

/// The dtypes of biases in the file, which their gradients take.
struct Own {
    key_bias: Option<Float>,
    bias: Option<Float>,
}

fn gradients(call: &Call<'_>, loaded: &Loaded, (inputs, saved): (&Inputs<'_>, &Saved<'_>), own: Own) -> Result<Vec<Named>, Error> {
    let like = |float: Float, tensor: &Tensor| Tensor::zeros(float, &tensor.shape);
    let [mut dq, mut dk, mut dv] = [&loaded.q, &loaded.k, &loaded.v].map(|tensor| like(loaded.float, tensor));
    let mut dkey_bias = loaded.key_bias.as_ref().map(|tensor| like(Float::F32, tensor));
    let mut dbias = loaded.bias.as_ref().map(|tensor| like(Float::F32, tensor));
    let mut gradients = Gradients {
        dq: Some(dq.view_mut("dq")?),
        dk: Some(dk.view_mut("dk")?),
        dv: Some(dv.view_mut("dv")?),
        dkey_bias: dkey_bias.as_mut().map(Tensor::as_f32_mut),
        dbias: dbias.as_mut().map(Tensor::as_f32_mut),
    };
    call.chosen.mechanism.backward(inputs, call.pass, saved, &mut gradients, call.par)?;
    let mut results = vec![("dq", dq), ("dk", dk), ("dv", dv)];
    results.extend(dkey_bias.zip(own.key_bias).map(|(tensor, float)| ("dkey_bias", tensor.converted(float))));
    results.extend(dbias.zip(own.bias).map(|(tensor, float)| ("dbias", tensor.converted(float))));
    Ok(results)
}
