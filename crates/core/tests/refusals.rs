//! What is refused, and that the message names the numbers.

use regard_core::mechanism::{Inputs, Local, Mechanism, Pass};
use regard_core::{
    Alignment, Dims, Dropout, Error, Gradients, Output, Par, Problem, Saved, Scores, Sight, Strided, StridedMut, View, ViewMut, bf16, exact,
};

/// Zeros for any view.
static ZEROS: [f32; 4096] = [0.0; 4096];
static NARROW: [bf16; 4096] = [bf16::ZERO; 4096];

fn zeros(shape: [usize; 4]) -> View<'static> {
    Strided::contiguous(&ZEROS, shape, "zeros").unwrap().into()
}

/// Two batch rows, four query heads on two kv heads, three queries of five keys, 8 features.
const Q: [usize; 4] = [2, 4, 3, 8];
const K: [usize; 4] = [2, 2, 5, 8];
const V: [usize; 4] = [2, 2, 5, 6];
const O: [usize; 4] = [2, 4, 3, 6];

fn of_shapes(q: [usize; 4], k: [usize; 4], v: [usize; 4]) -> Result<Problem<'static>, Error> {
    Problem::new(zeros(q), zeros(k), zeros(v), Sight::full(), Scores::new())
}

fn problem() -> Problem<'static> {
    of_shapes(Q, K, V).unwrap()
}

/// Why a problem is refused.
#[track_caller]
fn error(problem: Result<Problem<'_>, Error>) -> Error {
    match problem {
        Ok(_) => panic!("this was not refused"),
        Err(error) => error,
    }
}

#[track_caller]
fn message(problem: Result<Problem<'_>, Error>) -> String {
    error(problem).to_string()
}

/// The message of a problem that is refused for its sight or its scores.
#[track_caller]
fn refused(sight: Sight<'_>, scores: Scores<'_>) -> String {
    message(Problem::new(zeros(Q), zeros(K), zeros(V), sight, scores))
}

#[track_caller]
fn unseen(sight: Sight<'_>) -> String {
    refused(sight, Scores::new())
}

#[track_caller]
fn unscored(scores: Scores<'_>) -> String {
    refused(Sight::full(), scores)
}

fn shape(tensor: &'static str, found: &[usize], expected: &[usize]) -> Error {
    Error::Shape { tensor, found: found.to_vec(), expected: expected.to_vec() }
}

#[test]
fn what_fits_is_a_problem() {
    let dims = Dims { batch: 2, heads: 4, kv_heads: 2, queries: 3, keys: 5, dk: 8, dv: 6 };
    assert_eq!(*problem().dims(), dims);
}

#[test]
fn shapes_that_disagree() {
    let refused = |k, v| error(of_shapes(Q, k, v));
    assert_eq!(refused([1, 2, 5, 8], V), shape("k", &[1, 2, 5, 8], &[2, 2, 5, 8]));
    assert_eq!(refused([2, 2, 5, 7], V), shape("k", &[2, 2, 5, 7], &[2, 2, 5, 8]));
    assert_eq!(refused(K, [2, 2, 4, 6]), shape("v", &[2, 2, 4, 6], &[2, 2, 5, 6]));
    assert_eq!(refused(K, [2, 1, 5, 6]), shape("v", &[2, 1, 5, 6], &[2, 2, 5, 6]));
    assert_eq!(refused(K, [3, 2, 5, 6]).to_string(), "v has shape [3, 2, 5, 6], expected [2, 2, 5, 6]");
}

#[test]
fn heads_that_do_not_divide() {
    let refused = |heads, kv_heads| error(of_shapes([1, heads, 3, 8], [1, kv_heads, 5, 8], [1, kv_heads, 5, 6]));
    assert_eq!(refused(8, 3), Error::Heads { heads: 8, kv_heads: 3 });
    assert_eq!(refused(8, 3).to_string(), "8 query heads do not divide over 3 key/value heads");
    assert_eq!(refused(2, 4), Error::Heads { heads: 2, kv_heads: 4 });
    assert_eq!(refused(0, 1), Error::Heads { heads: 0, kv_heads: 1 });
    assert_eq!(refused(1, 0), Error::Heads { heads: 1, kv_heads: 0 });
}

#[test]
fn heads_without_features() {
    let refused = message(of_shapes([1, 1, 3, 0], [1, 1, 5, 0], [1, 1, 5, 6]));
    assert_eq!(refused, "head_dim: Dk = 0 and Dv = 6 must be at least 1");
    assert!(of_shapes([1, 1, 3, 8], [1, 1, 5, 8], [1, 1, 5, 0]).is_err());
}

#[test]
fn mixed_types() {
    let narrow = |shape| View::from(Strided::contiguous(&NARROW, shape, "narrow").unwrap());
    let refused = |q, k, v| error(Problem::new(q, k, v, Sight::full(), Scores::new()));
    assert_eq!(refused(zeros(Q), narrow(K), zeros(V)), Error::Dtype { tensor: "k", found: "bf16", expected: "f32" });
    assert_eq!(refused(narrow(Q), narrow(K), zeros(V)).to_string(), "v is f32, expected bf16");
    let mut data = [bf16::ZERO; 4096];
    let o = ViewMut::Bf16(StridedMut::contiguous(&mut data, O, "o").unwrap());
    let refused = exact::forward(&problem(), &mut Output { o, lse: None }, Par::serial()).unwrap_err();
    assert_eq!(refused, Error::Dtype { tensor: "o", found: "bf16", expected: "f32" });
}

#[test]
fn views_that_reach_outside() {
    let refused = |offset, shape, strides| Strided::new(&ZEROS[..24], offset, shape, strides, "q").unwrap_err();
    let outside = |needed| Error::OutOfBounds { tensor: "q", needed, available: 24 };
    assert_eq!(refused(0, [1, 2, 3, 5], [30, 15, 5, 1]), outside(30));
    assert_eq!(refused(1, [1, 2, 3, 4], [24, 12, 4, 1]), outside(25));
    assert_eq!(refused(0, [1, 1, 2, 1], [0, 0, 24, 1]).to_string(), "q: shape and strides reach 25 elements, the data has 24");
    assert!(matches!(refused(10, [1, 1, 12, 1], [0, 0, -1, 1]), Error::OutOfBounds { .. }));
    assert!(matches!(refused(0, [2, 2, 2, 2], [isize::MAX; 4]), Error::OutOfBounds { .. }));
    assert_eq!(Strided::contiguous(&ZEROS[..24], [1, 2, 3, 5], "q").unwrap_err(), outside(30));
    assert!(Strided::new(&ZEROS[..24], 100, [1, 0, 3, 4], [0; 4], "q").is_ok(), "nothing is read of an empty view");
}

#[test]
fn outputs_that_overlap() {
    let mut data = [0.0f32; 24];
    let mut refused = |shape, strides| StridedMut::new(&mut data, shape, strides, "o").unwrap_err();
    let message = "rows of an output overlap (shape [1, 2, 3, 4], strides [24, 0, 4, 1])".to_owned();
    assert_eq!(refused([1, 2, 3, 4], [24, 0, 4, 1]), Error::Layout { tensor: "o", message });
    assert!(matches!(refused([1, 2, 3, 4], [24, 4, 4, 1]), Error::Layout { .. }));
    assert!(matches!(refused([1, 1, 3, 4], [24, 24, 3, 1]), Error::Layout { .. }));
    assert!(refused([1, 1, 2, 4], [0, 0, 8, 2]).to_string().starts_with("o: the last dimension of an output must be contiguous"));
    assert_eq!(refused([1, 2, 3, 5], [30, 15, 5, 1]), Error::OutOfBounds { tensor: "o", needed: 30, available: 24 });
}

#[test]
fn lengths_that_are_not_there() {
    assert_eq!(unseen(Sight::full().lengths(&[5, 6])), "lengths: 6 in batch row 1 exceeds the 5 that are there");
    assert_eq!(unseen(Sight::full().lengths_q(&[4, 0])), "lengths_q: 4 in batch row 0 exceeds the 3 that are there");
    assert_eq!(unseen(Sight::full().lengths(&[5])), "lengths has shape [1], expected [2]");
    assert_eq!(unseen(Sight::full().lengths_q(&[1, 2, 3])), "lengths_q has shape [3], expected [2]");
}

/// The message of packed tensors with three queries and five keys that are refused.
#[track_caller]
fn unpacked(sight: Sight<'_>) -> String {
    message(of_one_row(sight))
}

fn of_one_row(sight: Sight<'_>) -> Result<Problem<'_>, Error> {
    let one = |shape: [usize; 4]| zeros([1, shape[1], shape[2], shape[3]]);
    Problem::new(one(Q), one(K), one(V), sight, Scores::new())
}

#[test]
fn offsets_that_do_not_ascend_from_zero_to_the_end() {
    let queries = |offsets: &[usize]| unpacked(Sight::full().offsets(offsets, &[0, 2, 5]));
    assert_eq!(queries(&[1, 2, 3]), "offsets_q: offsets must ascend from 0 to 3, found [1, 2, 3]");
    assert_eq!(queries(&[0, 2, 4]), "offsets_q: offsets must ascend from 0 to 3, found [0, 2, 4]");
    assert_eq!(queries(&[0, 4, 3]), "offsets_q: offsets must ascend from 0 to 3, found [0, 4, 3]");
    assert_eq!(queries(&[0, 3]), "offsets_k has shape [3], expected [2]");
    assert_eq!(unpacked(Sight::full().offsets(&[0, 1, 3], &[0, 2, 4])), "offsets_k: offsets must ascend from 0 to 5, found [0, 2, 4]");
    assert_eq!(unpacked(Sight::full().offsets(&[], &[])), "offsets_q: offsets must ascend from 0 to 3, found []");
}

#[test]
fn options_that_exclude_one_another() {
    let packed = Sight::full().offsets(&[0, 3], &[0, 5]);
    assert_eq!(unseen(packed), "packed sequences need a batch of 1, found 2");
    let combined = "offsets exclude lengths, key_spans and key_positions";
    assert_eq!(unpacked(packed.lengths(&[5])), combined);
    assert_eq!(unpacked(packed.lengths_q(&[3])), combined);
    assert_eq!(unpacked(packed.key_spans(&[[0, 1], [0, 1]])), combined);
    assert_eq!(unpacked(packed.positions(&[0; 3], &[0; 10])), combined);
    assert_eq!(unpacked(Sight::full().lengths(&[5]).key_spans(&[[0, 1], [0, 1]])), "key_spans exclude lengths");
    let placed = Sight::full().positions(&[0; 3], &[0; 10]).alignment(Alignment::TopLeft);
    assert_eq!(unpacked(placed), "key_positions exclude the top_left alignment");
}

#[test]
fn spans_and_positions_that_do_not_fit() {
    assert_eq!(unpacked(Sight::full().key_spans(&[[0, 5]])), "key_spans has shape [1], expected [2]");
    assert_eq!(unpacked(Sight::full().key_spans(&[[0, 5], [1, 5]])), "key_spans: (1, 5) exceeds the 5 keys");
    assert!(unpacked(Sight::full().key_spans(&[[0, 5], [1, usize::MAX]])).starts_with("key_spans: (1, 1844"));
    assert_eq!(unpacked(Sight::full().positions(&[0; 2], &[0; 10])), "query_positions has shape [2], expected [3]");
    assert_eq!(unpacked(Sight::full().positions(&[0; 3], &[0; 5])), "key_positions has shape [5], expected [10]");
}

#[test]
fn positions_too_far_out() {
    let limit = i64::from(i32::MAX / 4);
    for far in [limit + 1, -limit - 1, i64::MAX, i64::MIN + 1, i64::MIN] {
        let message = format!("key_positions: {far} exceeds {limit}");
        assert_eq!(unpacked(Sight::full().positions(&[0, far, 0], &[0; 10])), message);
    }
    assert!(of_one_row(Sight::full().positions(&[limit, -limit, 0], &[0; 10])).is_ok());
}

#[test]
fn more_tokens_than_positions_can_count() {
    let many = Strided::new(&ZEROS, 0, [1, 1, 1 << 30, 1], [0; 4], "k").unwrap();
    let refused = message(Problem::new(zeros([1, 1, 1, 1]), many.into(), many.into(), Sight::full(), Scores::new()));
    assert_eq!(refused, "length: 1073741824 exceeds 536870911");
}

#[test]
fn tables_of_another_size() {
    assert_eq!(unscored(Scores::new().key_bias(&[0.0; 10])), "key_bias has shape [10], expected [20]");
    assert_eq!(unseen(Sight::full().until(&[0; 5])), "until has shape [5], expected [20]");
    let bias = zeros([2, 2, 3, 5]);
    assert_eq!(unscored(Scores::new().bias(bias)), "bias has shape [2, 2, 3, 5], expected [2, 4, 3, 5]");
    assert_eq!(unscored(Scores::new().bias(zeros([2, 4, 3, 4]))), "bias has shape [2, 4, 3, 4], expected [2, 4, 3, 5]");
    let mask = Strided::contiguous(&[1u8; 30], [1, 2, 3, 5], "mask").unwrap();
    assert_eq!(unseen(Sight::full().mask(mask)), "mask has shape [1, 2, 3, 5], expected [2, 4, 3, 5]");
}

#[test]
fn numbers_out_of_range() {
    assert_eq!(unscored(Scores::new().scale(f32::NAN)), "scale: NaN is not finite");
    assert_eq!(unscored(Scores::new().scale(f32::INFINITY)), "scale: inf is not finite");
    assert_eq!(unscored(Scores::new().softcap(0.0)), "softcap: 0 is not above 0");
    assert_eq!(unscored(Scores::new().softcap(-2.5)), "softcap: -2.5 is not above 0");
    assert_eq!(unscored(Scores::new().softcap(f32::NAN)), "softcap: NaN is not finite");
    for (probability, written) in [(1.0, "1"), (-0.1, "-0.1"), (1.5, "1.5"), (f32::NAN, "NaN")] {
        let message = unscored(Scores::new().dropout(Dropout { probability, seed: 0, step: 0 }));
        assert_eq!(message, format!("dropout: {written} is outside [0, 1)"));
    }
}

/// The message of a forward pass with room for `lse` numbers and an output of `shape`.
fn unwritten(shape: [usize; 4], lse: usize) -> String {
    let (mut data, mut lse) = ([0.0; 4096], vec![0.0; lse]);
    let o = ViewMut::F32(StridedMut::contiguous(&mut data, shape, "o").unwrap());
    exact::forward(&problem(), &mut Output { o, lse: Some(&mut lse) }, Par::serial()).unwrap_err().to_string()
}

#[test]
fn outputs_of_another_shape() {
    assert_eq!(unwritten([2, 4, 3, 8], 24), "o has shape [2, 4, 3, 8], expected [2, 4, 3, 6]");
    assert_eq!(unwritten(O, 23), "lse has shape [23], expected [24]");
    let mut into = [0.0; 40];
    let refused = |lse: &[f32], into: &mut [f32]| exact::received(&problem(), lse, into, Par::serial()).unwrap_err().to_string();
    assert_eq!(refused(&[0.0; 23], &mut into), "lse has shape [23], expected [24]");
    assert_eq!(refused(&[0.0; 24], &mut into[..39]), "received has shape [39], expected [40]");
}

/// The message of a backward pass.
fn no_gradient(saved: Saved<'_>, mut gradients: Gradients<'_>) -> String {
    exact::backward(&problem(), &saved, &mut gradients, Par::serial()).unwrap_err().to_string()
}

#[test]
fn saved_values_of_another_shape() {
    let saved = Saved { o: zeros(O), lse: &ZEROS[..24], d_o: zeros(O) };
    let message = |saved| no_gradient(saved, Gradients::default());
    assert_eq!(message(Saved { o: zeros(Q), ..saved }), "o has shape [2, 4, 3, 8], expected [2, 4, 3, 6]");
    assert_eq!(message(Saved { d_o: zeros(V), ..saved }), "do has shape [2, 2, 5, 6], expected [2, 4, 3, 6]");
    assert_eq!(message(Saved { lse: &ZEROS[..25], ..saved }), "lse has shape [25], expected [24]");
}

fn wrong(data: &mut [f32]) -> Option<ViewMut<'_>> {
    Some(ViewMut::F32(StridedMut::contiguous(data, [1, 1, 1, 1], "gradient").unwrap()))
}

#[test]
fn gradients_of_another_shape() {
    let saved = Saved { o: zeros(O), lse: &ZEROS[..24], d_o: zeros(O) };
    let (mut data, mut flat) = ([0.0; 4096], [0.0; 21]);
    let no = Gradients::default;
    assert_eq!(no_gradient(saved, Gradients { dq: wrong(&mut data), ..no() }), "dq has shape [1, 1, 1, 1], expected [2, 4, 3, 8]");
    assert_eq!(no_gradient(saved, Gradients { dk: wrong(&mut data), ..no() }), "dk has shape [1, 1, 1, 1], expected [2, 2, 5, 8]");
    assert_eq!(no_gradient(saved, Gradients { dv: wrong(&mut data), ..no() }), "dv has shape [1, 1, 1, 1], expected [2, 2, 5, 6]");
    assert_eq!(no_gradient(saved, Gradients { dkey_bias: Some(&mut flat), ..no() }), "dkey_bias has shape [21], expected [20]");
    assert_eq!(no_gradient(saved, Gradients { dbias: Some(&mut flat), ..no() }), "dbias has shape [21], expected [0]");
}

#[test]
fn rectangles_outside_of_the_weights() {
    let weights = |at, rows, columns| exact::weights(&problem(), &[0.0; 24], at, rows, columns);
    assert_eq!(weights([1, 3], 0..3, 0..5).unwrap().len(), 15);
    assert_eq!(weights([1, 3], 2..2, 0..5).unwrap().len(), 0);
    for (at, rows, columns) in [([2, 0], 0..1, 0..1), ([0, 4], 0..1, 0..1), ([0, 0], 0..4, 0..1), ([0, 0], 0..1, 0..6)] {
        let message = weights(at, rows, columns).unwrap_err().to_string();
        assert!(message.starts_with("weights: batch row ") && message.contains("reach outside"), "{message}");
    }
}

#[test]
fn options_of_mechanisms() {
    assert!(Mechanism::by_name("softmax").is_none());
    let refused = |mechanism: &str, name: &str, value: &str| {
        let mut mechanism = Mechanism::by_name(mechanism).unwrap();
        mechanism.set(name, value).expect_err("this is not an option").to_string()
    };
    assert_eq!(refused("local", "sink", "1"), "unknown option \"sink\"; there are window, sinks, scale");
    assert_eq!(refused("local", "window", "0"), "window=0: expected an integer of at least 1");
    assert_eq!(refused("local", "window", "-1"), "window=-1: expected an integer of at least 1");
    assert_eq!(refused("local", "scale", "inf"), "scale=inf: expected a number");
    assert_eq!(refused("exact", "softcap", "0"), "softcap=0: expected a number above 0");
    assert_eq!(refused("exact", "dropout", "1"), "dropout=1: expected a number in [0, 1)");
    assert_eq!(refused("exact", "alibi", "yes"), "alibi=yes: expected true or false");
    assert_eq!(refused("exact", "alignment", "left"), "alignment=left: expected bottom_right or top_left");
    assert_eq!(
        refused("exact", "window_left", "99999999999999999999k"),
        "window_left=99999999999999999999k: expected an integer of at least 0"
    );
    let empty = Mechanism::Local(Local { window: 0, ..Local::default() });
    let inputs = Inputs::new(zeros(Q), zeros(K), zeros(V), Sight::causal());
    assert_eq!(empty.choose(&inputs, Pass::default(), Par::default()).unwrap_err().to_string(), "window: 0 keys: a window has at least 1");
}

#[test]
fn written_options_are_set() {
    let mut mechanism = Mechanism::by_name("local").unwrap();
    for (name, value) in [("window", "2k"), ("sinks", "4"), ("scale", "0.5")] {
        mechanism.set(name, value).unwrap();
    }
    let Mechanism::Local(local) = mechanism else { panic!("local is {mechanism:?}") };
    assert_eq!(local, Local { window: 2048, sinks: 4, scale: Some(0.5) });
}
