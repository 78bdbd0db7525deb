//! Row operations: the fused kernels of Burn's CPU device in f32, bf16 and f16, and with a GPU's feature (`wgpu`, `cuda`) tensor
//! operations there in f32, against tensor operations in f64; values and every gradient, on views as they come.

mod common;

use burn::tensor::{DType, Device, Gradients, Int, Tensor, TensorData};
use common::{Random, gpus, tensor, values};
use regard::Tally;
use regard::rows::{self, Activation, Labels, Pairing, Rotary, Scaling, Turns};
use regard_core::oracle::Storage;

/// How parents `[2, 5, width]` lie in memory.
const LAYOUTS: [&str; 4] = ["contiguous", "transposed", "flipped", "sliced"];

fn lay(x: Tensor<3>, layout: &str) -> Tensor<3> {
    match layout {
        "transposed" => x.swap_dims(0, 1),
        "flipped" => x.flip([1, 2]),
        "sliced" => x.clone().narrow(2, 1, x.dims()[2] - 1),
        _ => x,
    }
}

/// Where and in which type an operation runs.
#[derive(Clone)]
struct Place {
    device: Device,
    storage: Storage,
    dtype: DType,
    fused: bool,
}

impl Place {
    fn flex(storage: Storage, dtype: DType) -> Self {
        Place { device: Device::flex().autodiff(), storage, dtype, fused: dtype != DType::F64 }
    }

    /// Every place that can be tested.
    fn all() -> Vec<Place> {
        let types = [(Storage::F32, DType::F32), (Storage::Bf16, DType::BF16), (Storage::F16, DType::F16)];
        let mut places: Vec<Place> = types.map(|(storage, dtype)| Place::flex(storage, dtype)).into();
        places.extend(gpus().into_iter().map(|device| Place { device, storage: Storage::F32, dtype: DType::F32, fused: false }));
        places
    }

    /// In f64, of inputs that this place can hold.
    fn defined(&self) -> Self {
        Place::flex(self.storage, DType::F64)
    }
}

/// The tensors of an operation, tracked: some of rows, some vectors and matrices.
struct Given {
    rows: Vec<Tensor<3>>,
    vectors: Vec<Tensor<1>>,
    matrices: Vec<Tensor<2>>,
    layout: &'static str,
    storage: Storage,
}

/// How many of each, and the width of the rows.
type Wants = ([usize; 3], usize);

/// Output features of linear maps.
const OUT: usize = 7;

impl Given {
    fn new(([rows, vectors, matrices], width): Wants, place: &Place, layout: &'static str, seed: u64) -> Self {
        let random = &mut Random::new(seed);
        let Place { device, storage, dtype, .. } = place.clone();
        let shape = match layout {
            "transposed" => [5, 2, width],
            "sliced" => [2, 5, width + 1],
            _ => [2, 5, width],
        };
        let count = shape.iter().product();
        let rows = (0..rows).map(|_| tensor(&random.normals(storage, count), shape, dtype, &device).require_grad()).collect();
        let lengths = [width, if matrices > 0 { OUT } else { width }];
        let vectors =
            (0..vectors).map(|i| tensor(&random.normals(storage, lengths[1 - i % 2]), [lengths[1 - i % 2]], dtype, &device).require_grad());
        let vectors = vectors.collect();
        let matrices =
            (0..matrices).map(|_| tensor(&random.normals(storage, width * OUT), [width, OUT], dtype, &device).require_grad()).collect();
        Given { rows, vectors, matrices, layout, storage }
    }

    fn row(&self, at: usize) -> Tensor<3> {
        lay(self.rows[at].clone(), self.layout)
    }

    fn gradients(&self, gradients: &Gradients) -> Vec<Vec<f64>> {
        let rows = self.rows.iter().map(|x| values(x.grad(gradients).expect("a gradient")));
        let vectors = self.vectors.iter().map(|x| values(x.grad(gradients).expect("a gradient")));
        let matrices = self.matrices.iter().map(|x| values(x.grad(gradients).expect("a gradient")));
        rows.chain(vectors).chain(matrices).collect()
    }

    /// Value and gradients; the gradient of the output is normal numbers that arrive transposed.
    fn run<const D: usize>(&self, operation: impl Fn(&Given) -> Tensor<D>) -> Vec<Vec<f64>> {
        let y = operation(self);
        let random = &mut Random::new(99);
        let dy = tensor(&random.normals(self.storage, y.dims().iter().product()), y.dims(), y.dtype(), &y.device());
        let loss = if D > 1 { (y.clone().swap_dims(0, D - 2) * dy.swap_dims(0, D - 2)).sum() } else { (y.clone() * dy).sum() };
        let gradients = loss.backward();
        std::iter::once(values(y)).chain(self.gradients(&gradients)).collect()
    }
}

/// Both must agree to some units of the storage type's last place of the largest number in a tensor: a sum of a few
/// hundred terms of that size, each rounded once in f32, stays within 32 of f32's; a 16-bit result is rounded once, its
/// saved values once more.
fn agree(found: &[Vec<f64>], expected: &[Vec<f64>], storage: Storage, place: &str) {
    let unit = match storage {
        Storage::F32 => 32.0 * 2f64.powi(-24),
        Storage::Bf16 => 4.0 * 2f64.powi(-8),
        Storage::F16 => 4.0 * 2f64.powi(-11),
    };
    assert_eq!(found.len(), expected.len());
    for (tensor, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "tensor {tensor}: {place}");
        let largest = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (i, (x, y)) in found.iter().zip(expected).enumerate() {
            assert!((x - y).abs() <= unit * largest, "tensor {tensor}[{i}] is {x:e}, defined {y:e}: {place}");
        }
    }
}

/// The operation in f64, composed, against f32, bf16 and f16, fused, over layouts and the usual widths.
fn check<const D: usize>(name: &str, counts: [usize; 3], operation: impl Fn(&Given) -> Tensor<D>) {
    check_widths((name, &[2, 16, 34]), counts, operation);
}

fn check_widths<const D: usize>((name, widths): (&str, &[usize]), counts: [usize; 3], operation: impl Fn(&Given) -> Tensor<D>) {
    for (seed, layout) in (1..).zip(LAYOUTS) {
        for place in Place::all() {
            for &width in widths {
                let wants = (counts, width);
                let run = |place: &Place| {
                    let before = Tally::read();
                    let found = Given::new(wants, place, layout, seed).run(&operation);
                    let tally = Tally::read() - before;
                    assert_eq!((tally.fused, tally.composed), if place.fused { (1, 0) } else { (0, 1) }, "{name}");
                    assert_eq!(tally.gradients, if place.fused { counts.iter().sum::<usize>() as u64 } else { 0 }, "{name}");
                    found
                };
                let about = format!("{name} {layout} {:?} {:?} width={width} seed={seed}", place.dtype, place.device);
                agree(&run(&place), &run(&place.defined()), place.storage, &about);
            }
        }
    }
}

#[test]
fn softmax() {
    check("softmax", [1, 0, 0], |given| rows::softmax(given.row(0)).expect("it fits"));
    check("log_softmax", [1, 0, 0], |given| rows::log_softmax(given.row(0)).expect("it fits"));
}

#[test]
fn activations() {
    for f in Activation::ALL {
        check(f.name(), [1, 0, 0], |given| rows::activation(given.row(0), f).expect("it fits"));
    }
}

#[test]
fn swiglu() {
    check("swiglu", [2, 0, 0], |given| rows::swiglu(given.row(0), given.row(1)).expect("it fits"));
}

#[test]
fn norms() {
    // Of two features a layer norm is ±1 whatever they are: its gradient is nothing but cancellation.
    let widths = [16, 34];
    check_widths(("layer_norm", &widths), [1, 2, 0], |given| {
        let (weight, bias) = (given.vectors[0].clone(), given.vectors[1].clone());
        rows::layer_norm(given.row(0), weight, Some(bias), 1e-5).expect("it fits")
    });
    check_widths(("layer_norm without bias", &widths), [1, 1, 0], |given| {
        rows::layer_norm(given.row(0), given.vectors[0].clone(), None, 1e-5).expect("it fits")
    });
    check_widths(("layer_norm_added", &widths), [2, 2, 0], |given| {
        let (weight, bias) = (given.vectors[0].clone(), given.vectors[1].clone());
        rows::layer_norm_added(given.row(0), given.row(1), weight, Some(bias), 1e-5).expect("it fits")
    });
    check_widths(("rms_norm_added", &widths), [2, 1, 0], |given| {
        rows::rms_norm_added(given.row(0), given.row(1), given.vectors[0].clone(), 1e-6).expect("it fits")
    });
    check_widths(("rms_norm", &widths), [1, 1, 0], |given| rows::rms_norm(given.row(0), given.vectors[0].clone(), 1e-6).expect("it fits"));
}

#[test]
fn linear_maps() {
    for f in Activation::ALL {
        check(&format!("linear {}", f.name()), [1, 1, 1], |given| {
            rows::linear(given.row(0), given.matrices[0].clone(), Some(given.vectors[0].clone()), f).expect("it fits")
        });
    }
    check("linear without bias", [1, 0, 1], |given| {
        rows::linear(given.row(0), given.matrices[0].clone(), None, Activation::None).expect("it fits")
    });
}

#[test]
fn rotary() {
    for pairing in [Pairing::Halves, Pairing::Interleaved] {
        let turn = Rotary { dims: 2, base: 100.0, pairing, scaling: Scaling::None };
        for dims in [2, 16] {
            let positions: Vec<i64> = (0..10).map(|i| 3 * i).collect();
            let turns = Turns::new(Rotary { dims, ..turn }, positions).expect("it fits");
            for place in Place::all() {
                let run = |place: &Place| {
                    Given::new(([1, 0, 0], 16), place, "transposed", 5)
                        .run(|given| rows::rotary(given.row(0).reshape([2, 5, 1, 16]).swap_dims(1, 2), &turns).expect("it fits"))
                };
                let about = format!("rotary {pairing:?} dims={dims} {:?} {:?}", place.dtype, place.device);
                agree(&run(&place), &run(&place.defined()), place.storage, &about);
            }
        }
    }
}

fn integers<const D: usize>(values: &[i64], shape: [usize; D], device: &Device) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

#[test]
fn embedding() {
    let given = |place: &Place| Given::new(([0, 0, 1], 16), place, "contiguous", 7);
    let look_up = |given: &Given, ids: &[i64]| {
        let table = given.matrices[0].clone();
        let ids = integers(ids, [2, ids.len() / 2], &table.device());
        rows::embedding(table, ids)
    };
    for place in Place::all() {
        let run = |place: &Place| given(place).run(|given| look_up(given, &[3, 1, 3, 15, 0, 3]).expect("it fits"));
        agree(&run(&place), &run(&place.defined()), place.storage, &format!("embedding {:?} {:?}", place.dtype, place.device));
    }
    let error = look_up(&given(&Place::flex(Storage::F32, DType::F32)), &[3, 16]).expect_err("it was taken");
    assert_eq!(error.to_string(), "ids: row 1 has id 16, the vocabulary has 16 entries");
}

#[test]
fn cross_entropy() {
    let given = |place: &Place, width| Given::new(([0, 0, 1], width), place, "contiguous", 9);
    let loss = |given: &Given, labels: &[i64], how| {
        let logits = given.matrices[0].clone() * 3.0;
        let labels = integers(labels, [labels.len()], &logits.device());
        rows::cross_entropy(logits, labels, how)
    };
    for smoothing in [0.0, 0.125] {
        let how = Labels { smoothing, ..Labels::default() };
        for place in Place::all().into_iter().filter(|place| place.dtype == DType::F32) {
            let run = |place: &Place| given(place, 5).run(|given| loss(given, &[6, 0, -100, 2, 2], how).expect("it fits"));
            agree(
                &run(&place),
                &run(&place.defined()),
                place.storage,
                &format!("cross-entropy, smoothing {smoothing}, {:?}", place.device),
            );
        }
    }
    let given = given(&Place::flex(Storage::F32, DType::F32), 2);
    assert_eq!(values(loss(&given, &[-100, -100], Labels::default()).expect("it fits")), [0.0]);
    let error = loss(&given, &[1, 7], Labels::default()).expect_err("it was taken").to_string();
    assert_eq!(error, "labels: row 1 has label 7, there are 7 classes and -100 means none");
}

/// Parents that are not tracked cost no gradient.
#[test]
fn untracked_parents_cost_nothing() {
    let given = Given::new(([1, 1, 1], 16), &Place::flex(Storage::F32, DType::F32), "contiguous", 11);
    let (x, weight, bias) = (given.row(0), given.matrices[0].clone(), given.vectors[0].clone());
    for subset in 1..8u32 {
        let wanted = |i: u32| subset >> i & 1 == 1;
        let x = if wanted(0) { x.clone() } else { x.clone().without_autodiff() };
        let weight = if wanted(1) { weight.clone() } else { weight.clone().without_autodiff() };
        let bias = if wanted(2) { bias.clone() } else { bias.clone().without_autodiff() };
        let y = rows::linear(x, weight, Some(bias), Activation::Gelu).expect("it fits");
        let before = Tally::read();
        y.sum().backward();
        assert_eq!((Tally::read() - before).gradients, u64::from(subset.count_ones()), "subset {subset:03b}");
    }
}

#[test]
fn refusals() {
    let device = Device::flex();
    let x = Tensor::<2>::zeros([3, 4], &device);
    let error = rows::linear(x.clone(), Tensor::zeros([5, 6], &device), None, Activation::None).expect_err("it was taken");
    assert_eq!(error.to_string(), "weight has shape [5, 6], expected [4, 6]");
    let error = rows::rms_norm(x.clone(), Tensor::zeros([3], &device), 1e-5).expect_err("it was taken");
    assert_eq!(error.to_string(), "weight has shape [3], expected [4]");
    let error = rows::swiglu(x.clone(), x.cast(DType::F16)).expect_err("it was taken");
    assert_eq!(error.to_string(), "up is f16, expected f32 as gate is");
}
