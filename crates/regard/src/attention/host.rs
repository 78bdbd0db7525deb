//! A call as the core sees it where only shapes and choices matter: tensors that are one zero, repeated, and on the host what
//! choices are made from.

use super::Attention;
use crate::Error;
use burn::tensor::{Bool, Tensor};
use regard_core::mechanism::{Inputs, Planned};
use regard_core::{Par, Strided, View};

/// One zero in any shape: the core looks at shapes only.
fn shape_only<'a>(shape: [usize; 4], tensor: &'static str) -> Result<View<'a>, Error> {
    Ok(Strided::new(&[0.0f32], 0, shape, [0; 4], tensor)?.into())
}

/// All elements of a tensor, read back.
pub(crate) struct Read<const D: usize> {
    values: Vec<f32>,
    shape: [usize; D],
}

impl<const D: usize> Read<D> {
    pub(crate) fn new(x: &Tensor<D>) -> Self {
        Read { values: x.clone().into_data().iter::<f32>().collect(), shape: x.dims() }
    }

    /// In another shape; without values, the shape alone.
    pub(crate) fn view(&self, shape: [usize; 4], tensor: &'static str) -> Result<View<'_>, Error> {
        if self.values.is_empty() {
            return shape_only(shape, tensor);
        }
        Ok(Strided::contiguous(&self.values, shape, tensor)?.into())
    }
}

/// What was read back, or is only a shape.
pub(super) struct Host<'a> {
    how: &'a Attention,
    shapes: [[usize; 4]; 3],
    key_bias: Option<Vec<f32>>,
    bias: Option<Read<4>>,
    mask: Option<(Vec<u8>, [usize; 4])>,
    type_logits: Option<Vec<f32>>,
    threshold: Option<Vec<f32>>,
    mix: Option<Vec<f32>>,
    x: Option<Read<3>>,
    k: Option<Read<4>>,
    q: Option<Read<4>>,
    v: Option<Read<4>>,
}

/// How much of the biases and the mask is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scores {
    /// Their shapes.
    Shapes,
    /// What they hide.
    Values,
}

impl<'a> Host<'a> {
    /// `v`: where there is none, one value for every key.
    pub(super) fn new(how: &'a Attention, [q, k]: [&Tensor<4>; 2], v: Option<&Tensor<4>>, scores: Scores) -> Self {
        let [batch, kv_heads, keys, _] = k.dims();
        let flat = |x: &Tensor<3>| match scores {
            Scores::Values => Read::new(x).values,
            Scores::Shapes => vec![0.0; x.dims().iter().product()],
        };
        // Whatever compares tokens compares hidden states, or keys; codes are of keys and of queries, and so are hashes, and keys are drawn by
        // values.
        let (compares, hashes) = (how.reads("x"), how.reads("hyperplanes"));
        let [codes, codes_q] = ["codebook", "codebook_q"].map(|tensor| how.reads(tensor));
        let mask = |x: &Tensor<4, Bool>| {
            let values = match scores {
                Scores::Values => x.clone().into_data().iter::<bool>().map(u8::from).collect(),
                Scores::Shapes => vec![1],
            };
            (values, x.dims())
        };
        let bias = |x: &Tensor<4>| match scores {
            Scores::Values => Read::new(x),
            Scores::Shapes => Read { values: Vec::new(), shape: x.dims() },
        };
        Host {
            how,
            shapes: [q.dims(), k.dims(), v.map_or([batch, kv_heads, keys, 1], |v| v.dims())],
            key_bias: how.key_bias.as_ref().map(flat),
            bias: how.bias.as_ref().map(bias),
            mask: how.mask.as_ref().map(mask),
            type_logits: how.learned.type_logits.as_ref().map(|x| Read::new(x).values),
            threshold: how.learned.threshold.as_ref().map(|x| Read::new(x).values),
            mix: how.learned.mix.as_ref().map(|x| vec![0.0; x.dims()[0]]),
            x: how.learned.x.as_ref().filter(|_| compares).map(Read::new),
            k: (compares || codes || hashes).then(|| Read::new(k)),
            q: (codes_q || hashes).then(|| Read::new(q)),
            v: v.filter(|_| hashes).map(Read::new),
        }
    }

    fn inputs(&self) -> Result<Inputs<'_>, Error> {
        let [q, k, v] = self.shapes;
        let k = self.k.as_ref().map_or_else(|| shape_only(k, "k"), |read| read.view(k, "k"))?;
        let q = self.q.as_ref().map_or_else(|| shape_only(q, "q"), |read| read.view(q, "q"))?;
        let v = self.v.as_ref().map_or_else(|| shape_only(v, "v"), |read| read.view(v, "v"))?;
        let mut inputs = self.how.rules.inputs([q, k, v]);
        if let Some((values, shape)) = &self.mask {
            let mask = if values.len() == 1 {
                Strided::new(values, 0, *shape, [0; 4], "mask")
            } else {
                Strided::contiguous(values, *shape, "mask")
            };
            inputs.sight = inputs.sight.mask(mask?);
        }
        inputs.bias = self.bias.as_ref().map(|bias| bias.view(bias.shape, "bias")).transpose()?;
        inputs.key_bias = self.key_bias.as_deref();
        inputs.type_logits = self.type_logits.as_deref();
        inputs.threshold = self.threshold.as_deref();
        inputs.mix = self.mix.as_deref();
        inputs.gates = self.how.learned.gates.as_ref().map(|gates| shape_only(gates.dims(), "gates")).transpose()?;
        if let Some(x) = &self.x {
            let [batch, tokens, width] = x.shape;
            inputs.x = Some(x.view([batch, 1, tokens, width], "x")?);
        }
        Ok(inputs)
    }

    /// Chooses and plans.
    pub(super) fn plan<R>(&self, run: impl FnOnce(&'static str, &Planned<'_>) -> Result<R, Error>) -> Result<R, Error> {
        let inputs = self.inputs()?;
        let (mechanism, pass) = (self.how.rules.mechanism()?, self.how.rules.pass());
        let choices = mechanism.choose(&inputs, pass, Par::default())?;
        run(mechanism.about().name, &mechanism.plan(&inputs, &choices, pass)?)
    }
}
