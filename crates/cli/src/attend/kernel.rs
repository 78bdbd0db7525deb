//! The mechanism's parallel form: all queries at once.

use super::{Call, Named, integers};
use crate::attend::inputs::Loaded;
use crate::tensor::{Float, Tensor};
use regard_core::mechanism::{Gradients, Plan, Planned};
use regard_core::{Dims, Error, Output, Saved};

/// o, lse, traces and whatever else the call wants.
pub fn attend(call: &Call<'_>, mut loaded: Loaded) -> Result<Vec<Named>, Error> {
    let own: Vec<(&'static str, Float)> = loaded.learned().filter_map(|(name, tensor)| Some((name, tensor.float()?))).collect();
    loaded.narrow();
    let inputs = loaded.inputs(call.causal)?;
    let mechanism = &call.chosen.mechanism;
    let choices = mechanism.choose(&inputs, call.pass, call.par)?;
    let plan = mechanism.plan(&inputs, &choices, call.pass)?;
    let Dims { batch, heads, queries, keys, dv, .. } = plan.dims();

    let mut o = Tensor::zeros(loaded.float, &[batch, heads, queries, dv]);
    let mut lse = Tensor::zeros(Float::F32, &[batch, heads, queries]);
    plan.forward(&mut Output { o: o.view_mut("o")?, lse: Some(lse.as_f32_mut()) }, call.par)?;

    let mut results = plan.traces().into_iter().map(integers).collect::<Vec<_>>();
    if call.received {
        let mut received = Tensor::zeros(Float::F32, &[batch, heads, keys]);
        plan.received(lse.as_f32(), received.as_f32_mut(), call.par)?;
        results.push(("received", received));
    }
    if let Some(d_o) = &loaded.d_o {
        let saved = Saved { o: o.view("o")?, lse: lse.as_f32(), d_o: d_o.view("do")? };
        results.extend(gradients(call, &loaded, (&plan, &saved), &own)?);
    }
    results.extend(plan.loss().map(|loss| ("loss", Tensor::rounded(Float::F32, &[1], &[loss]))));
    results.push(("o", o));
    if call.chosen.about().traces.contains(&"lse") {
        results.push(("lse", lse));
    }
    Ok(results)
}

/// Gradients of everything that is there and has one; `own` are the dtypes in the file, which they take.
fn gradients(
    call: &Call<'_>,
    loaded: &Loaded,
    (plan, saved): (&Planned<'_>, &Saved<'_>),
    own: &[(&'static str, Float)],
) -> Result<Vec<Named>, Error> {
    let like = |float: Float, tensor: &Tensor| Tensor::zeros(float, &tensor.shape);
    let single = |tensor: &Option<Tensor>, wanted: bool| tensor.as_ref().filter(|_| wanted).map(|tensor| like(Float::F32, tensor));
    let learns = |name: &str| plan.gradients().contains(&name);
    let [mut dq, mut dk, mut dv] = [&loaded.q, &loaded.k, &loaded.v].map(|tensor| like(loaded.float, tensor));
    let mut dkey_bias = single(&loaded.key_bias, true);
    let mut dbias = single(&loaded.bias, true);
    let mut dx = single(&loaded.x, learns("dx"));
    let mut dtype_logits = single(&loaded.type_logits, learns("dtype_logits"));
    let mut dthreshold = single(&loaded.threshold, learns("dthreshold"));
    let mut dmix = single(&loaded.mix, learns("dmix"));
    let mut dgates =
        loaded.gates.as_ref().filter(|_| learns("dgates")).map(|gates| Tensor::zeros(gates.float().unwrap_or(Float::F32), &gates.shape));
    let heads = regard_core::Gradients {
        dq: Some(dq.view_mut("dq")?),
        dk: Some(dk.view_mut("dk")?),
        dv: Some(dv.view_mut("dv")?),
        dkey_bias: dkey_bias.as_mut().map(Tensor::as_f32_mut),
        dbias: dbias.as_mut().map(Tensor::as_f32_mut),
    };
    let mut gradients = Gradients {
        heads,
        dx: dx.as_mut().map(|dx| dx.view_mut("dx")).transpose()?,
        dtype_logits: dtype_logits.as_mut().map(Tensor::as_f32_mut),
        dthreshold: dthreshold.as_mut().map(Tensor::as_f32_mut),
        dgates: dgates.as_mut().map(|dgates| dgates.view_mut("dgates")).transpose()?,
        dmix: dmix.as_mut().map(Tensor::as_f32_mut),
    };
    plan.backward(saved, &mut gradients, call.par)?;
    let mut results = vec![("dq", dq), ("dk", dk), ("dv", dv)];
    if let Some(dx) = &mut dx {
        dx.shape.remove(1);
    }
    let rest = [
        ("dkey_bias", dkey_bias),
        ("dbias", dbias),
        ("dx", dx),
        ("dtype_logits", dtype_logits),
        ("dthreshold", dthreshold),
        ("dgates", dgates),
        ("dmix", dmix),
    ];
    for (name, tensor) in rest {
        let float = own.iter().find(|(own, _)| *own == &name[1..]).map(|(_, float)| *float);
        results.extend(tensor.zip(float).map(|(tensor, float)| (name, tensor.converted(float))));
    }
    Ok(results)
}
