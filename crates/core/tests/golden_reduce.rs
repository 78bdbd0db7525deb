//! The golden files of `golden/reduce.py`: scores and merging of tokens against float64 PyTorch, written from the papers' formulas.

mod common;

use common::data::{Tensors, repository};
use common::levels;
use regard_core::reduce::{Reducer, Tokens, Uniform};
use regard_core::rows::{Matrix, MatrixMut};
use regard_core::{Output, Par, Problem, Scores, Sight, Strided, StridedMut, View, ViewMut, exact};

fn read(name: &str) -> Tensors {
    Tensors::read(&repository().join(format!("golden/reduce/{name}.safetensors")))
}

/// Values that f32 holds exactly, with their shape.
fn narrow(file: &Tensors, name: &str) -> (Vec<usize>, Vec<f32>) {
    let tensor = file.floats(name).unwrap_or_else(|| panic!("{name} is not there"));
    (tensor.shape, tensor.values.iter().map(|x| *x as f32).collect())
}

#[track_caller]
fn near(found: &[f32], file: &Tensors, name: &str) {
    let expected = file.floats(name).unwrap_or_else(|| panic!("{name} is not there")).values;
    assert_eq!(found.len(), expected.len(), "{name}");
    for (at, (x, y)) in found.iter().zip(&expected).enumerate() {
        assert!((f64::from(*x) - y).abs() <= 1e-6 * (1.0 + y.abs()), "{name}[{at}] is {x:e}, expected {y:e}");
    }
}

fn check_scores(name: &str, par: Par) {
    let file = read(name);
    let (q_shape, q) = narrow(&file, "q");
    let (k_shape, k) = narrow(&file, "k");
    let mask = file.flags("mask").expect("a mask");
    let view = |values, shape: &[usize]| View::from(Strided::contiguous(values, shape.try_into().unwrap(), "input").unwrap());
    let sight = Sight::full().mask(Strided::contiguous(&mask.values, mask.four(), "mask").unwrap());
    let problem = Problem::new(view(&q, &q_shape), view(&k, &k_shape), view(&k, &k_shape), sight, Scores::new()).unwrap();
    let [_, heads, tokens, _] = q_shape[..] else { panic!("four dimensions") };
    let (mut o, mut lse) = (vec![0.0; q.len()], vec![0.0; heads * tokens]);
    let out = ViewMut::F32(StridedMut::contiguous(&mut o, q_shape[..].try_into().unwrap(), "o").unwrap());
    exact::forward(&problem, &mut Output { o: out, lse: Some(&mut lse) }, par).unwrap();
    let (mut received, mut score) = (vec![0.0; heads * tokens], vec![0.0; tokens]);
    exact::received(&problem, &lse, &mut received, par).unwrap();
    Uniform::new(&problem, par).score(&received, &mut score).unwrap();
    near(&score, &file, "expected_score");
}

#[test]
fn scores_are_pytorchs() {
    for name in ["scores_full", "scores_causal", "scores_window", "scores_scattered"] {
        levels().for_each(|level| check_scores(name, Par::default().level(level)));
    }
}

/// The reducer before the underscore, with the options of the file.
fn check_merging(name: &str, par: Par) {
    let file = read(name);
    let mut reducer = Reducer::by_name(name.split('_').next().expect("a name")).expect("a reducer");
    for (option, value) in file.options() {
        reducer.set(&option, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let (shape, keys) = narrow(&file, "keys");
    let (x_shape, x) = narrow(&file, "x");
    let (_, sizes) = narrow(&file, "sizes");
    let keys = Matrix::new(&keys, [shape[0], shape[1]], "keys").unwrap();
    let offsets = [0, shape[0]];
    let tokens = Tokens { keys: Some(keys), sizes: Some(&sizes), ..Tokens::new(&offsets) };
    let reduction = reducer.reduce(&tokens, 0, par).unwrap();
    let integers = |name| file.integers(name).expect("integers").values;
    assert_eq!(reduction.kept().iter().map(|&row| row as i64).collect::<Vec<_>>(), integers("expected_kept"), "{name}");
    assert_eq!(reduction.map().iter().map(|r| r.map_or(-1, |r| r as i64)).collect::<Vec<_>>(), integers("expected_map"), "{name}");
    near(reduction.sizes(), &file, "expected_sizes");
    let mut y = vec![f32::NAN; reduction.kept().len() * x_shape[1]];
    let mut into = MatrixMut::new(&mut y, [reduction.kept().len(), x_shape[1]], "y").unwrap();
    reduction.apply(&Matrix::new(&x, [x_shape[0], x_shape[1]], "x").unwrap(), &mut into, par).unwrap();
    near(&y, &file, "expected_y");
}

#[test]
fn merging_is_pytorchs() {
    for name in ["tome_few", "tome_many", "pitome_vision", "pitome_text", "pitome_guard"] {
        levels().for_each(|level| check_merging(name, Par::default().level(level)));
    }
}
