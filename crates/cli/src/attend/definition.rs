//! The mechanism's definition in f64. Its step form is the same numbers.

use super::{Call, Named, step};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::oracle::{Definition, Dense};
use regard_core::{Dims, Error};

/// o, lse and whatever else the call wants, all in f64.
pub fn attend(call: &Call<'_>, mut loaded: Loaded) -> Result<Vec<Named>, Error> {
    if call.step {
        step::check(call, &loaded)?;
    }
    let doubles = Doubles::taken_from(&mut loaded);
    let mut definition = call.chosen.mechanism.definition(&loaded.inputs(call.causal)?, call.pass)?;
    let d_o = doubles.put_into(&mut definition);
    restore_numbers(call, &mut definition);

    let Dims { batch, heads, queries, keys, dv, .. } = loaded.dims;
    let forward = definition.forward();
    let mut results = vec![("o", double(&[batch, heads, queries, dv], &forward.o))];
    if call.chosen.about().traces.contains(&"lse") {
        results.push(("lse", double(&[batch, heads, queries], &forward.lse)));
    }
    if call.received {
        results.push(("received", double(&[batch, heads, keys], &forward.received)));
    }
    if let Some(d_o) = d_o {
        results.extend(gradients(&definition, &d_o, &loaded));
    }
    Ok(results)
}

fn gradients(definition: &Definition, d_o: &[f64], loaded: &Loaded) -> Vec<Named> {
    let gradients = definition.backward(d_o);
    let mut results = vec![
        ("dq", double(&loaded.q.shape, &gradients.dq)),
        ("dk", double(&loaded.k.shape, &gradients.dk)),
        ("dv", double(&loaded.v.shape, &gradients.dv)),
    ];
    results.extend(loaded.key_bias.as_ref().map(|bias| ("dkey_bias", double(&bias.shape, &gradients.dkey_bias))));
    results.extend(loaded.bias.as_ref().map(|bias| ("dbias", double(&bias.shape, &gradients.dbias))));
    results
}

fn double(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::rounded(Float::F64, shape, values)
}

/// The numbers of options as they are written: the mechanism holds them as f32.
fn restore_numbers(call: &Call<'_>, definition: &mut Definition) {
    let written = |key| call.chosen.written(key).and_then(|text| text.parse().ok());
    definition.scale = written("scale");
    definition.softcap = written("softcap").or(definition.softcap);
}

/// The file's numbers, which the definition gets in place of their f32 shadows.
struct Doubles {
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    d_o: Option<Vec<f64>>,
    key_bias: Option<Vec<f64>>,
    bias: Option<Dense<f64>>,
}

impl Doubles {
    /// Leaves f32 behind.
    fn taken_from(loaded: &mut Loaded) -> Self {
        let bias = loaded.bias.as_mut().map(|bias| (bias.shape4(), take(bias)));
        Doubles {
            q: take(&mut loaded.q),
            k: take(&mut loaded.k),
            v: take(&mut loaded.v),
            d_o: loaded.d_o.take().map(|d_o| d_o.to_f64()),
            key_bias: loaded.key_bias.as_mut().map(take),
            bias: bias.map(|([batch, heads, ..], values)| Dense { batch, heads, values }),
        }
    }

    /// Gives back the gradient of the output.
    fn put_into(self, definition: &mut Definition) -> Option<Vec<f64>> {
        definition.q = self.q;
        definition.k = self.k;
        definition.v = self.v;
        definition.key_bias = self.key_bias;
        definition.bias = self.bias;
        self.d_o
    }
}

fn take(tensor: &mut Tensor) -> Vec<f64> {
    let doubles = tensor.to_f64();
    *tensor = Tensor::rounded(Float::F32, &tensor.shape, &doubles);
    doubles
}
