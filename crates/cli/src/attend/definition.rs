//! The mechanism's definition in f64. Its step form is the same numbers.

use super::{Call, Named, integers, step};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::{OptionAbout, Plan};
use regard_core::oracle::Oracle;
use regard_core::{Dims, Error};

/// o, lse, traces and whatever else the call wants, floats in f64.
pub fn attend(call: &Call<'_>, mut loaded: Loaded) -> Result<Vec<Named>, Error> {
    if call.step {
        step::check(call, &loaded)?;
    }
    let d_o = loaded.d_o.take().map(|d_o| d_o.to_f64());
    let doubles = Doubles::taken_from(&mut loaded);
    let inputs = loaded.inputs(call.causal)?;
    let choices = call.chosen.mechanism.choose(&inputs, call.pass, call.par)?;
    let plan = call.chosen.mechanism.plan(&inputs, &choices, call.pass)?;
    let mut oracle = plan.oracle();
    doubles.put_into(oracle.as_mut());
    let exact = |option: &&OptionAbout| ["scale", "softcap"].contains(&option.name.rsplit('.').next().unwrap_or_default());
    for option in call.chosen.about().options.iter().filter(exact) {
        if let Some(value) = call.chosen.written(option.name).and_then(|text| text.parse().ok()) {
            oracle.refine(option.name, value);
        }
    }

    let Dims { batch, heads, keys, .. } = plan.dims();
    let mut results = if call.step { Vec::new() } else { plan.traces().into_iter().map(integers).collect() };
    if call.received {
        let received = oracle.received().ok_or_else(|| Error::Combination("this mechanism has no received attention".into()))?;
        results.push(("received", double(&[batch, heads, keys], &received)));
    }
    if let Some(loss) = plan.loss().filter(|_| !call.step) {
        results.push(("loss", double(&[1], &[loss])));
    }
    for defined in oracle.truth(d_o.as_deref()) {
        if let Some(shape) = shape_of(defined.name, &loaded) {
            results.push((defined.name, double(&shape, &defined.values)));
        }
    }
    Ok(results)
}

/// The shape in which a tensor is written.
fn shape_of(name: &str, loaded: &Loaded) -> Option<Vec<usize>> {
    let Dims { batch, heads, queries, dv, .. } = loaded.dims;
    let shape = |tensor: &Option<Tensor>| tensor.as_ref().map(|tensor| tensor.shape.clone());
    match name {
        "o" => Some(vec![batch, heads, queries, dv]),
        "lse" => Some(vec![batch, heads, queries]),
        "dq" => Some(loaded.q.shape.clone()),
        "dk" => Some(loaded.k.shape.clone()),
        "dv" => Some(loaded.v.shape.clone()),
        "dx" => shape(&loaded.x).map(|shape| vec![shape[0], shape[2], shape[3]]),
        "dkey_bias" => shape(&loaded.key_bias),
        "dbias" => shape(&loaded.bias),
        "dtype_logits" => shape(&loaded.type_logits),
        "dthreshold" => shape(&loaded.threshold),
        "dgates" => shape(&loaded.gates),
        "dmix" => shape(&loaded.mix),
        _ => None,
    }
}

fn double(shape: &[usize], values: &[f64]) -> Tensor {
    Tensor::rounded(Float::F64, shape, values)
}

/// The file's numbers, which the definition gets in place of their f32 shadows.
struct Doubles(Vec<(&'static str, Vec<f64>)>);

impl Doubles {
    /// Leaves f32 behind.
    fn taken_from(loaded: &mut Loaded) -> Self {
        let mut all = vec![("q", take(&mut loaded.q)), ("k", take(&mut loaded.k)), ("v", take(&mut loaded.v))];
        all.extend(loaded.learned().map(|(name, tensor)| (name, take(tensor))));
        all.extend(loaded.constants().map(|(name, tensor)| (name, take(tensor))));
        Doubles(all)
    }

    fn put_into(self, oracle: &mut dyn Oracle) {
        for (name, values) in self.0 {
            if let Some((_, leaf)) = oracle.leaves().into_iter().find(|(leaf, _)| *leaf == name) {
                *leaf = values;
            }
        }
    }
}

fn take(tensor: &mut Tensor) -> Vec<f64> {
    let doubles = tensor.to_f64();
    *tensor = Tensor::rounded(Float::F32, &tensor.shape, &doubles);
    doubles
}
