//! The calls into Regard's kernels: the only file here that knows their interface.

use peer_protocol::{Call, Ceilings, Data, Inputs, Result, Rule, Tensor};
use regard_core::mechanism::{self, Mechanism, Pass};
use regard_core::simd::ceiling;
use regard_core::{Element, Output, Par, Problem, Saved, Scores, Sight, Strided, StridedMut, View, ViewMut, exact};

/// Where the axes of `[B, H, N, D]` stand in `[B, N, H, D]`.
const TOKENS_FIRST: [usize; 4] = [0, 2, 1, 3];

/// What the passes write: allocated once, while loading.
pub struct Buffers {
    pub o: Tensor,
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
    lse: Vec<f32>,
}

impl Buffers {
    pub fn for_inputs(inputs: &Inputs) -> Self {
        let zeros = |tensor: &Tensor| Tensor::zeros_like(tensor.shape, &tensor.data);
        let o = Tensor::zeros_like(inputs.output_shape(), &inputs.q.data);
        let lse = vec![0.0; o.shape[..3].iter().product()];
        Self { o, dq: zeros(&inputs.q), dk: zeros(&inputs.k), dv: zeros(&inputs.v), lse }
    }
}

/// The SIMD level the kernels chose, for the record.
pub fn level() -> Option<String> {
    Some(Par::default().level_in_use().to_string())
}

/// The machine's limits, measured now in the pool of the caller.
pub fn ceilings(threads: usize) -> Ceilings {
    let par = Par::default().threads(threads);
    Ceilings {
        fma_gflops: Some(ceiling::fma_gflops(par)),
        bf16_gflops: ceiling::bf16_gflops(par),
        read_gbps: Some(ceiling::read_gbps(par)),
    }
}

/// `o = softmax(q kᵀ / √D) v`; also used for decoding, where `q` has one row. Runs in the pool of the caller.
pub fn forward(inputs: &Inputs, call: &Call, buffers: &mut Buffers) -> Result<()> {
    if let Rule::Mechanism(written) = &call.rule {
        return of_mechanism(written, inputs, call, buffers);
    }
    let o = view_mut(&mut buffers.o, call)?;
    exact::forward(&problem(inputs, call)?, &mut Output { o, lse: None }, Par::default())?;
    Ok(())
}

/// `o` and the gradients of `q`, `k`, `v` for the given `do`.
pub fn forward_backward(inputs: &Inputs, call: &Call, buffers: &mut Buffers) -> Result<()> {
    let (problem, par) = (problem(inputs, call)?, Par::default());
    let o = view_mut(&mut buffers.o, call)?;
    exact::forward(&problem, &mut Output { o, lse: Some(&mut buffers.lse) }, par)?;
    let d_o = view(inputs.d_o.as_ref().ok_or("do is not loaded")?, call)?;
    let saved = Saved { o: view(&buffers.o, call)?, lse: &buffers.lse, d_o };
    let mut gradients = regard_core::Gradients {
        dq: Some(view_mut(&mut buffers.dq, call)?),
        dk: Some(view_mut(&mut buffers.dk, call)?),
        dv: Some(view_mut(&mut buffers.dv, call)?),
        ..Default::default()
    };
    exact::backward(&problem, &saved, &mut gradients, par)?;
    Ok(())
}

/// The same by another mechanism, choosing included.
fn of_mechanism(written: &str, inputs: &Inputs, call: &Call, buffers: &mut Buffers) -> Result<()> {
    let (name, options) = written.split_once(':').unwrap_or((written, ""));
    let mut mechanism = Mechanism::by_name(name).ok_or_else(|| format!("there is no mechanism {name}"))?;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (option, value) = option.split_once('=').ok_or_else(|| format!("{option} is not of the form option=value"))?;
        mechanism.set(option, value)?;
    }
    let sight = if call.causal { Sight::causal() } else { Sight::full() };
    let given = mechanism::Inputs::new(view(&inputs.q, call)?, view(&inputs.k, call)?, view(&inputs.v, call)?, sight);
    let o = view_mut(&mut buffers.o, call)?;
    mechanism.forward(&given, Pass::default(), &mut Output { o, lse: None }, Par::default())?;
    Ok(())
}

fn problem<'a>(inputs: &'a Inputs, call: &Call) -> Result<Problem<'a>> {
    let side = &inputs.side;
    let mut sight = if call.causal { Sight::causal() } else { Sight::full() };
    let mut scores = Scores::new();
    match &call.rule {
        Rule::Plain => {}
        Rule::KeyBias => scores = scores.key_bias(&side.key_bias),
        Rule::Window(keys) => {
            let reach = keys.checked_sub(1).ok_or("a window has at least 1 key")?;
            sight = sight.window(Some(reach), None);
        }
        Rule::Lifetimes => sight = sight.until(&side.until),
        Rule::Mechanism(name) => return Err(format!("{name} is measured forward only").into()),
        Rule::Segments => sight = sight.offsets(&side.offsets, &side.offsets),
    }
    let [q, k, v] = [view(&inputs.q, call)?, view(&inputs.k, call)?, view(&inputs.v, call)?];
    Ok(Problem::new(q, k, v, sight, scores)?)
}

/// The tensor as `[B, H, N, D]`, wherever its values lie.
fn view<'a>(tensor: &'a Tensor, call: &Call) -> Result<View<'a>> {
    Ok(match &tensor.data {
        Data::F32(values) => strided(&values[..], tensor.shape, call)?.into(),
        Data::Bf16(values) => strided(&values[..], tensor.shape, call)?.into(),
    })
}

fn strided<'a, T: Element>(values: &'a [T], shape: [usize; 4], call: &Call) -> Result<Strided<'a, T>> {
    let whole = Strided::contiguous(values, shape, "tensor")?;
    Ok(if call.tokens_first { whole.permuted(TOKENS_FIRST) } else { whole })
}

fn view_mut<'a>(tensor: &'a mut Tensor, call: &Call) -> Result<ViewMut<'a>> {
    let [a, b, c, d] = tensor.shape;
    let mut layout = [[a, b, c, d], [b * c * d, c * d, d, 1]];
    if call.tokens_first {
        layout = layout.map(|each| TOKENS_FIRST.map(|axis| each[axis]));
    }
    let [shape, strides] = layout;
    Ok(match &mut tensor.data {
        Data::F32(values) => ViewMut::F32(StridedMut::new(&mut values[..], shape, strides, "output")?),
        Data::Bf16(values) => ViewMut::Bf16(StridedMut::new(&mut values[..], shape, strides, "output")?),
    })
}
