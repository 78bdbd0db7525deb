//! Operations with a backward pass of their own: everything that touches Burn's dispatch and autodiff internals.
//!
//! An [`Operation`] has N float parents, any of which may be absent, and one output. [`run`] takes the parents apart,
//! calls its forward pass, and where some parent is tracked adds one step to the graph. Parents that the backward pass
//! reads are checkpointed, so that Burn's gradient checkpointing may recompute them; parents that are absent or not
//! tracked are never asked for a gradient.

use crate::{Error, Tally};
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, Flex};
use burn::tensor::{Bool, Tensor};
use std::fmt::Debug;
use std::marker::PhantomData;

/// One value per parent.
pub(crate) type Parents<const N: usize> = [Option<FlexTensor>; N];

/// An operation on the CPU with N float parents, one output and a backward pass of its own.
pub(crate) trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the backward pass needs beside the parents.
    type Saved: Clone + Debug + Send + 'static;

    /// Which parents the backward pass reads, given which of them are tracked.
    fn reads(&self, tracked: [bool; N]) -> [bool; N];

    /// The output. `keep`: whether a backward pass may follow, else what is saved is not looked at.
    ///
    /// # Errors
    /// If the parents do not fit.
    fn forward(&self, parents: &Parents<N>, keep: bool) -> Result<(FlexTensor, Self::Saved), Error>;

    /// The gradients that are `wanted`, from the parents that it reads and the gradient of the output.
    ///
    /// # Errors
    /// None after a forward pass that had none.
    fn backward(&self, step: Step<Self, N>, wanted: [bool; N]) -> Result<Parents<N>, Error>;
}

/// What a backward pass is given.
#[derive(Debug)]
pub(crate) struct Step<O: Operation<N>, const N: usize> {
    pub(crate) parents: Parents<N>,
    pub(crate) saved: O::Saved,
    /// The gradient of the output, with any strides.
    pub(crate) gradient: FlexTensor,
}

/// A float tensor on its way into an operation.
#[derive(Debug, Clone)]
pub(crate) struct Parent(DispatchTensor);

impl<const D: usize> From<Tensor<D>> for Parent {
    fn from(x: Tensor<D>) -> Self {
        Parent(x.into_dispatch())
    }
}

/// Whether a tensor is on the device that has fused kernels.
pub(crate) fn on_flex<const D: usize>(x: &Tensor<D>) -> bool {
    let kind = x.clone().into_dispatch().kind;
    let kind = match &kind {
        DispatchTensorKind::Autodiff(inner) => inner,
        kind => kind,
    };
    matches!(kind, DispatchTensorKind::Flex(_))
}

/// The memory of a boolean tensor on the CPU.
pub(crate) fn flex_bool<const D: usize>(x: Tensor<D, Bool>) -> Option<FlexTensor> {
    match x.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Bool(x)) => Some(x),
        _ => None,
    }
}

/// The memory of a tensor on the CPU that is not tracked.
///
/// # Panics
/// If it is elsewhere: callers see to that.
pub(crate) fn flex_float<const D: usize>(x: Tensor<D>) -> FlexTensor {
    with_node(x.into()).into_primitive()
}

/// A tensor of memory on the CPU, not tracked.
pub(crate) fn from_flex<const D: usize>(x: FlexTensor) -> Tensor<D> {
    let kind = DispatchTensorKind::Flex(BackendTensor::Float(x));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// Runs an operation on parents that are all on the CPU, at least one of them present.
///
/// # Errors
/// Those of its forward pass.
///
/// # Panics
/// If a parent is elsewhere, or all are absent: callers see to both.
pub(crate) fn run<O: Operation<N>, const N: usize, const D: usize>(operation: O, parents: [Option<Parent>; N]) -> Result<Tensor<D>, Error> {
    Tally::add(|tally| tally.fused += 1);
    let contexts = parents.iter().flatten().map(|Parent(parent)| parent.autodiff);
    let context = contexts.fold(DispatchAutodiffContext::Disabled, DispatchAutodiffContext::merge);
    let (tensor, autodiff) = match context {
        DispatchAutodiffContext::Disabled => (BackendTensor::Float(plain(&operation, parents)?), false),
        DispatchAutodiffContext::Enabled(_) => (BackendTensor::Autodiff(recorded(operation, parents)?), true),
    };
    let kind = DispatchTensorKind::Flex(tensor);
    let kind = if autodiff { DispatchTensorKind::Autodiff(Box::new(kind)) } else { kind };
    Ok(Tensor::from_dispatch(DispatchTensor { kind, autodiff: context }))
}

type Tracked = FloatTensor<Autodiff<Flex>>;

fn plain<O: Operation<N>, const N: usize>(operation: &O, parents: [Option<Parent>; N]) -> Result<FlexTensor, Error> {
    let parents = parents.map(|parent| parent.map(|parent| with_node(parent).into_primitive()));
    Ok(operation.forward(&parents, false)?.0)
}

/// A tensor without autodiff becomes a constant of the graph.
fn with_node(Parent(parent): Parent) -> Tracked {
    let kind = match parent.kind {
        DispatchTensorKind::Autodiff(inner) => *inner,
        kind => kind,
    };
    match kind {
        DispatchTensorKind::Flex(BackendTensor::Autodiff(x)) => x,
        DispatchTensorKind::Flex(BackendTensor::Float(x)) => Tracked::new(x),
        other => panic!("a parent of a fused operation is {other:?}"),
    }
}

fn recorded<O: Operation<N>, const N: usize>(operation: O, parents: [Option<Parent>; N]) -> Result<Tracked, Error> {
    let parents = parents.map(|parent| parent.map(with_node));
    let tracked = parents.each_ref().map(|parent| parent.as_ref().is_some_and(Tracked::is_tracked));
    let primitives = parents.each_ref().map(|parent| parent.as_ref().map(|x| x.primitive().clone()));
    let (output, saved) = operation.forward(&primitives, tracked.contains(&true))?;
    drop(primitives);
    // A node of its own, never tracked, stands for an absent parent.
    let nodes = parents.each_ref().map(|parent| parent.as_ref().map_or_else(|| Tracked::new(output.clone()).node(), Tracked::node));
    Ok(match Recorded::<O, N>(PhantomData).prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::UnTracked(step) => step.finish(output),
        OpsKind::Tracked(mut step) => {
            let reads = operation.reads(tracked);
            let mut at = 0..N;
            let read = parents.each_ref().map(|parent| {
                let wanted = at.next().is_some_and(|i| reads[i]);
                parent.as_ref().filter(|_| wanted).map(|x| step.checkpoint(x))
            });
            step.finish(State { operation, read, saved }, output)
        }
    })
}

#[derive(Debug, Clone)]
struct State<O: Operation<N>, const N: usize> {
    operation: O,
    read: [Option<NodeId>; N],
    saved: O::Saved,
}

/// The step of an operation in the graph.
#[derive(Debug)]
struct Recorded<O, const N: usize>(PhantomData<O>);

impl<O: Operation<N>, const N: usize> Backward<Flex, N> for Recorded<O, N> {
    type State = State<O, N>;

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let gradient = grads.consume::<Flex>(&ops.node);
        let State { operation, read, saved } = ops.state;
        let parents = read.map(|id| id.map(|id| checkpointer.retrieve_node_output::<FlexTensor>(id)));
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = operation.backward(Step { parents, saved, gradient }, wanted).expect("the forward pass was taken");
        Tally::add(|tally| tally.gradients += found.iter().flatten().count() as u64);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<Flex>(node.id, gradient);
            }
        }
    }
}
