//! Every reducer of the list: as defined, sequence by sequence, on any number of threads, with gradients, layer after layer.

use super::common::{Random, levels};
use super::tokens::{Batch, drawn, reducer};
use regard_core::oracle::reduce::Fate;
use regard_core::reduce::{Reducer, Reduction, Tokens};
use regard_core::rows::MatrixMut;
use regard_core::{Element, Error, Par, bf16, f16};

const LENGTHS: [usize; 10] = [0, 1, 2, 3, 8, 13, 31, 63, 64, 65];
/// Layers that are reduced: options may differ from layer to layer.
const LAYERS: usize = 4;
/// Choices closer than this may go either way in f32.
const CLOSE: f64 = 1e-5;

/// How many cases there were.
#[derive(Debug, Default)]
struct Count {
    compared: usize,
    refused: usize,
    close: usize,
    reduced: usize,
}

fn apply<T: Element>(reduction: &Reduction, batch: &Batch<T>, x: &[T], par: Par) -> Vec<T> {
    let mut y = vec![T::from_f32(f32::NAN); reduction.kept().len() * batch.width];
    let mut into = MatrixMut::new(&mut y, [reduction.kept().len(), batch.width], "y").unwrap();
    reduction.apply(&batch.matrix(x), &mut into, par).unwrap();
    y
}

/// Where each row went, as an input row.
fn places(reduction: &Reduction) -> Vec<Option<usize>> {
    reduction.map().iter().map(|r| r.map(|r| reduction.kept()[r])).collect()
}

/// What the definition says of all sequences together.
fn defined<T: Element>(batch: &Batch<T>, fates: &[Fate]) -> Vec<Option<usize>> {
    let of = |(rows, fate): (std::ops::Range<usize>, &Fate)| {
        fate.goes_to.iter().map(|place| place.map(|place| rows.start + place)).collect::<Vec<_>>()
    };
    batch.sequences().zip(fates).flat_map(of).collect()
}

/// What holds for every outcome, whatever was chosen.
fn check_consistent<T: Element>(batch: &Batch<T>, reduction: &Reduction, what: &str) {
    let (kept, map) = (reduction.kept(), reduction.map());
    assert!(kept.is_sorted_by(|a, b| a < b), "{what}: kept rows ascend");
    assert_eq!(map.len(), batch.rows(), "{what}");
    for (r, &row) in kept.iter().enumerate() {
        let members: Vec<usize> = (0..map.len()).filter(|&row| map[row] == Some(r)).collect();
        assert!(members.contains(&row), "{what}: an output row holds the token at whose position it stands");
        let size: f32 = members.iter().map(|&row| batch.sizes[row]).sum();
        assert_eq!(reduction.sizes()[r], size, "{what}: sizes are sums");
        assert_eq!(reduction.log_sizes()[r], size.ln(), "{what}");
        assert!(members == [row] || members.iter().all(|&row| !batch.protected[row]), "{what}: a protected token merges with nobody");
    }
    for (s, rows) in batch.sequences().enumerate() {
        let range = reduction.offsets()[s]..reduction.offsets()[s + 1];
        assert!(kept[range.clone()].iter().all(|row| rows.contains(row)), "{what}: offsets");
        assert_eq!(range.is_empty(), rows.is_empty(), "{what}: a sequence never ends up empty");
        assert!(rows.clone().all(|row| map[row].is_none_or(|r| range.contains(&r))), "{what}: sequences do not mix");
        assert!(rows.clone().all(|row| !batch.protected[row] || map[row].is_some_and(|r| kept[r] == row)), "{what}: protected");
    }
    assert_eq!(reduction.offsets().len(), batch.offsets.len(), "{what}");
}

fn widened<T: Element>(values: &[T]) -> Vec<f64> {
    values.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Means of `x` by the definition, and the largest summand.
fn means<T: Element>(batch: &Batch<T>, fates: &[Fate], x: &[f64]) -> (Vec<f64>, f64) {
    let (mut y, mut largest) = (Vec::new(), 0.0f64);
    for (rows, fate) in batch.sequences().zip(fates) {
        for (_, members) in fate.groups(&widened(&batch.sizes[rows.clone()])) {
            let term = |d: usize, (row, share): (usize, f64)| share * x[(rows.start + row) * batch.width + d];
            for d in 0..batch.width {
                largest = members.iter().fold(largest, |largest, &member| largest.max(term(d, member).abs()));
                y.push(members.iter().map(|&member| term(d, member)).sum());
            }
        }
    }
    (y, largest)
}

/// The same in f32 and rounded to the storage type, as it would be written plainly.
fn plain_means<T: Element>(batch: &Batch<T>, reduction: &Reduction) -> Vec<f64> {
    let mut sums = vec![0.0f32; reduction.kept().len() * batch.width];
    for (row, r) in reduction.map().iter().enumerate().filter_map(|(row, r)| r.map(|r| (row, r))) {
        for d in 0..batch.width {
            sums[r * batch.width + d] += batch.sizes[row] / reduction.sizes()[r] * batch.x[row * batch.width + d].to_f32();
        }
    }
    sums.iter().map(|sum| f64::from(T::from_f32(*sum).to_f32())).collect()
}

fn max_difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

fn check_means<T: Element>(batch: &Batch<T>, reduction: &Reduction, fates: &[Fate], what: &str) {
    let (exact, largest) = means(batch, fates, &widened(&batch.x));
    let budget = 2.0 * max_difference(&plain_means(batch, reduction), &exact) + 1e-6 * largest;
    for level in levels() {
        let found = apply(reduction, batch, &batch.x, Par::serial().level(level));
        let error = max_difference(&widened(&found), &exact);
        assert!(error <= budget, "{what} at {level}: means are off by {error:e} of {budget:e}");
    }
}

/// `Σ dy·y` moves by `dx · step` when x moves.
fn check_gradient(batch: &Batch<f32>, reduction: &Reduction, fates: &[Fate], what: &str) {
    let random = &mut Random::new(batch.rows() as u64);
    let dy: Vec<f32> = (0..reduction.kept().len() * batch.width).map(|_| random.normal()).collect();
    let mut dx = vec![f32::NAN; batch.x.len()];
    let mut into = MatrixMut::new(&mut dx, [batch.rows(), batch.width], "dx").unwrap();
    reduction.backward(&batch.matrix(&dy), &mut into, Par::default()).unwrap();
    let value = |x: &[f64]| -> f64 { means(batch, fates, x).0.iter().zip(&dy).map(|(y, dy)| y * f64::from(*dy)).sum() };
    for (at, dx) in dx.iter().enumerate() {
        let moved = |step: f64| {
            let mut x = widened(&batch.x);
            x[at] += step;
            value(&x)
        };
        let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        assert!((slope - f64::from(*dx)).abs() <= 1e-6 * (1.0 + slope.abs()), "{what}: dx[{at}] is {dx}, differences give {slope}");
    }
}

/// A packed batch is its sequences, each alone.
fn check_alone<T: Element>(batch: &Batch<T>, reducer: &Reducer, layer: usize, (whole, what): (&Reduction, &str)) {
    for rows in batch.sequences() {
        let alone = batch.alone(rows.clone());
        let alone = reducer.reduce(&alone.tokens(), layer, Par::default()).unwrap();
        let found: Vec<_> = places(whole)[rows.clone()].iter().map(|place| place.map(|place| place - rows.start)).collect();
        assert_eq!(found, places(&alone), "{what}: rows {rows:?} alone");
    }
}

fn check_case<T: Element>(reducer: &Reducer, lengths: &[usize], (seed, layer): (u64, usize), count: &mut Count) {
    let what = format!("{reducer:?} {lengths:?} layer {layer} seed={seed} {}", std::any::type_name::<T>());
    let batch = Batch::<T>::draw(lengths, 1 + (seed % 37) as usize, seed);
    let tokens = batch.tokens();
    let Some(fates) = reducer.definition(&tokens, layer).unwrap() else {
        let refusal = reducer.reduce(&tokens, layer, Par::default());
        assert!(refusal.is_err(), "{what}: the definition refuses it");
        count.refused += 1;
        return;
    };
    let reductions: Vec<Reduction> =
        levels().map(|level| reducer.reduce(&tokens, layer, Par::default().level(level)).expect(&what)).collect();
    for reduction in &reductions {
        check_consistent(&batch, reduction, &what);
    }
    if fates.iter().any(|fate| fate.gap < CLOSE) {
        count.close += 1;
        return;
    }
    for reduction in &reductions {
        assert_eq!(places(reduction), defined(&batch, &fates), "{what}");
    }
    let reduction = &reductions[0];
    check_means(&batch, reduction, &fates, &what);
    check_alone(&batch, reducer, layer, (reduction, &what));
    count.compared += 1;
    count.reduced += usize::from(reduction.kept().len() < batch.rows());
}

#[test]
fn reducers_do_as_defined() {
    for about in Reducer::ALL {
        let mut count = Count::default();
        for seed in 1..=800u64 {
            let random = &mut Random::new(seed * 7919);
            let Ok(reducer) = drawn(about.name, random) else { continue };
            let lengths = [0; 3].map(|_| random.pick(&LENGTHS));
            let at = (seed, random.below(LAYERS));
            match seed % 8 {
                0 => check_case::<bf16>(&reducer, &lengths, at, &mut count),
                1 => check_case::<f16>(&reducer, &lengths, at, &mut count),
                _ => check_case::<f32>(&reducer, &lengths, at, &mut count),
            }
        }
        println!("{}: {count:?}", about.name);
        assert!(count.compared >= 200 && count.reduced >= 50, "{}: too few cases, {count:?}", about.name);
    }
}

#[test]
fn gradients_are_finite_differences() {
    for about in Reducer::ALL {
        for layer in 0..LAYERS {
            let reducer = reducer(about.name, &[]);
            let batch = Batch::<f32>::draw(&[6, 0, 5], 3, layer as u64 + 5);
            let tokens = batch.tokens();
            let fates = reducer.definition(&tokens, layer).unwrap().expect(about.name);
            let reduction = reducer.reduce(&tokens, layer, Par::default()).unwrap();
            check_gradient(&batch, &reduction, &fates, about.name);
        }
    }
}

/// Long enough for every kernel to use its threads.
#[test]
fn threads_change_no_bit() {
    for about in Reducer::ALL {
        let mut cases = 0;
        for seed in 1..=20 {
            let Ok(reducer) = drawn(about.name, &mut Random::new(seed)) else { continue };
            let mut batch = Batch::<f32>::draw(&[900, 0, 1, 333], 96, seed);
            batch.protected.fill(false);
            for level in levels() {
                let run = |threads| -> Result<(Reduction, Vec<u32>), Error> {
                    let par = Par::serial().level(level).threads(threads);
                    let reduction = reducer.reduce(&batch.tokens(), (seed % 3) as usize, par)?;
                    let y = apply(&reduction, &batch, &batch.x, par);
                    Ok((reduction, y.iter().map(|y| y.to_bits()).collect()))
                };
                assert_eq!(run(1), run(2), "{reducer:?}");
                assert_eq!(run(1), run(3), "{reducer:?}");
                cases += usize::from(run(1).is_ok());
            }
        }
        println!("{}: {cases} cases", about.name);
        assert!(cases > 0, "{}", about.name);
    }
}

#[test]
fn at_the_exact_limit_everything_stays() {
    for about in Reducer::ALL {
        assert!(!about.exact.is_empty(), "{} has a setting at which it does nothing", about.name);
        for settings in about.exact {
            for layer in 0..LAYERS {
                let batch = Batch::<f32>::draw(&LENGTHS, 5, layer as u64);
                let reduction = reducer(about.name, settings).reduce(&batch.tokens(), layer, Par::default()).unwrap();
                assert_eq!(reduction.kept(), (0..batch.rows()).collect::<Vec<_>>(), "{} {settings:?}", about.name);
                assert_eq!(apply(&reduction, &batch, &batch.x, Par::default()), batch.x, "{} {settings:?}", about.name);
                assert_eq!(reduction.sizes(), batch.sizes);
            }
        }
    }
}

/// The next layer's tokens: means of vectors and sizes of the reduction, all else of the kept rows.
fn next(batch: &Batch<f32>, reduction: &Reduction) -> Batch<f32> {
    let kept = |values: &[f32]| reduction.kept().iter().map(|&row| values[row]).collect();
    Batch {
        offsets: reduction.offsets().to_vec(),
        width: batch.width,
        x: apply(reduction, batch, &batch.x, Par::default()),
        keys: apply(reduction, batch, &batch.keys, Par::default()),
        score: kept(&batch.score),
        sizes: reduction.sizes().to_vec(),
        gate_logits: kept(&batch.gate_logits),
        protected: reduction.kept().iter().map(|&row| batch.protected[row]).collect(),
    }
}

#[test]
fn several_layers_compose() {
    for about in Reducer::ALL {
        let first = Batch::<f32>::draw(&[65, 0, 1, 40], 6, 3);
        let (mut batch, mut all) = (first.clone(), None::<Reduction>);
        for layer in 0..LAYERS {
            let reducer = reducer(about.name, &[("protect", "0")]);
            batch.protected.fill(false);
            let reduction = reducer.reduce(&batch.tokens(), layer, Par::default()).expect(about.name);
            let composed = all.as_ref().map_or(Ok(reduction.clone()), |all| reduction.after(all)).unwrap();
            batch = next(&batch, &reduction);
            check_consistent(&Batch { protected: vec![false; first.rows()], ..first.clone() }, &composed, about.name);
            assert_eq!(composed.sizes(), reduction.sizes());
            let at_once = apply(&composed, &first, &first.x, Par::default());
            let error = max_difference(&widened(&at_once), &widened(&batch.x));
            assert!(error < 2e-6, "{}: layers after one another differ by {error} from all at once", about.name);
            all = Some(composed);
        }
        let all = all.expect("there are layers");
        println!("{}: {} tokens of {} are left", about.name, all.kept().len(), first.rows());
        assert!(all.kept().len() < first.rows(), "{}", about.name);
        let message = all.after(&all).unwrap_err().to_string();
        assert_eq!(message, format!("tokens has shape [{}], expected [{}]", first.rows(), all.kept().len()));
    }
}

#[test]
fn what_does_not_fit_is_refused_with_its_numbers() {
    for about in Reducer::ALL {
        let reducer = Reducer::by_name(about.name).unwrap();
        let batch = Batch::<f32>::draw(&[4, 3], 2, 1);
        let tokens = batch.tokens();
        let refusal = |tokens: &Tokens<'_>| (0..LAYERS).find_map(|layer| reducer.reduce(tokens, layer, Par::default()).err());
        let says = |tokens: &Tokens<'_>, message: &str| {
            let found = refusal(tokens).unwrap_or_else(|| panic!("{} takes it", about.name)).to_string();
            assert!(found.contains(message), "{}: {found}", about.name);
        };
        assert_eq!(refusal(&tokens), None);
        says(&Tokens { offsets: &[0, 5, 4], ..tokens }, "offsets must ascend from 0, found [0, 5, 4]");
        says(&Tokens { offsets: &[1, 7], ..tokens }, "offsets");
        says(&Tokens { score: Some(&[1.0]), ..tokens }, "score has shape [1], expected [7]");
        says(&Tokens { keys: Some(batch.matrix(&batch.keys[..4])), ..tokens }, "keys has shape [2, 2], expected [7, 2]");
        says(&Tokens { sizes: Some(&[1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]), ..tokens }, "row 2 stands for 0 tokens");
        says(&Tokens::new(&[0, 4, 7]), &format!("{} reads", about.name));
        let unknown = reducer.clone().set("nonsense", "1").unwrap_err().to_string();
        assert!(unknown.contains(about.options[0].name), "{unknown}");
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let says = |name: &str, settings: &[(&str, &str)], message: &str| {
        let found = reducer(name, settings).check().expect_err(message).to_string();
        assert!(found.contains(message), "{name}: {found}");
    };
    for name in ["prune", "tome", "pitome"] {
        says(name, &[("keep", "0")], "keep: 0 is not above 0 and at most 1");
        says(name, &[("keep", "0.5,1.5,1")], "keep: 1.5 is not above 0 and at most 1");
        let batch = Batch::<f32>::draw(&[9], 2, 1);
        let tokens = Tokens { protected: Some(&[true, true, true, false, false, false, false, false, true]), ..batch.tokens() };
        let settings: &[_] = if name == "prune" { &[("rule", "top_k"), ("keep", "0.2")] } else { &[("keep", "0.2")] };
        let message = reducer(name, settings).reduce(&tokens, 0, Par::default()).unwrap_err().to_string();
        assert_eq!(message, "keep: the sequence of rows 0..9 keeps 2 of 9 tokens, 4 are protected");
    }
    says("prune", &[("keep", "0.5"), ("count", "3")], "not both");
    says("prune", &[("count", "0")], "at least 1");
    says("prune", &[("temperature", "0")], "temperature: 0 ");
    says("tome", &[("keep", "0.5"), ("r", "3")], "not both");
    says("pitome", &[("sigma", "0")], "sigma: 0 is not a finite number above 0");
    says("delete_gate", &[("k", "30")], "k: 30 ");
    says("delete_gate", &[("target_rate", "1.5")], "target_rate: 1.5 ");
    assert!(reducer("prune", &[]).set("rule", "best").unwrap_err().to_string().contains("coreset"));
    assert!(reducer("tome", &[]).set("r", "3,,1").is_err());
}

/// Tokens of which only the keys are known.
fn kept_of(reducer: &Reducer, keys: &[[f32; 2]]) -> Reduction {
    let flat = keys.as_flattened();
    let matrix = regard_core::rows::Matrix::new(flat, [keys.len(), 2], "keys").unwrap();
    reducer.reduce(&Tokens { keys: Some(matrix), ..Tokens::new(&[0, keys.len()]) }, 0, Par::default()).unwrap()
}

#[test]
fn a_merged_token_stands_where_its_target_stood() {
    // Sources 0, 2, 4; targets 1, 3. Token 4 is nearest to 1, token 0 next nearest to 3.
    let keys = [[0.0, 1.0], [1.0, 0.0], [-1.0, -1.0], [0.2, 1.0], [1.0, 0.01]];
    let tome = reducer("tome", &[("r", "1"), ("protect", "0")]);
    let reduction = kept_of(&tome, &keys);
    assert_eq!((reduction.kept(), reduction.sizes()), (&[0, 1, 2, 3][..], &[1.0, 2.0, 1.0, 1.0][..]));
    assert_eq!(reduction.map()[4], Some(1));
    let reduction = kept_of(&reducer("tome", &[("r", "2"), ("protect", "0")]), &keys);
    assert_eq!(reduction.kept(), [1, 2, 3]);
    assert_eq!(reduction.map(), [Some(2), Some(0), Some(1), Some(2), Some(0)]);
}

#[test]
fn a_zero_vector_has_no_match_and_r_is_clamped() {
    let keys = [[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [2.0, 0.1], [1.0, 1.0]];
    let reduction = kept_of(&reducer("tome", &[("r", "5"), ("protect", "0")]), &keys);
    assert_eq!(reduction.kept(), [1, 2, 3]); // 0 and 4 go to 3; token 2 is zero, token 1 no target
    assert_eq!(reduction.sizes(), [1.0, 1.0, 3.0]);
}

#[test]
fn twice_r_never_exceeds_the_tokens() {
    // keep 0.2 of 5 asks for r = 4, of 4 unprotected tokens: two pairs at most.
    let keys = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.3], [1.0, 0.4]];
    let reduction = kept_of(&reducer("pitome", &[("keep", "0.2")]), &keys);
    assert_eq!(reduction.kept().len(), 3);
    assert_eq!(reduction.kept()[0], 0);
    let one = kept_of(&reducer("pitome", &[("keep", "0.2")]), &keys[..1]);
    assert_eq!(one.kept(), [0]);
}

#[test]
fn schedules_of_r_have_the_same_total() {
    let regard_core::reduce::Reducer::Tome(constant) = reducer("tome", &[("r", "9")]) else { panic!("tome") };
    let regard_core::reduce::Reducer::Tome(falling) = reducer("tome", &[("r", "9"), ("decrease", "7")]) else { panic!("tome") };
    let regard_core::reduce::Reducer::Tome(list) = reducer("tome", &[("r", "5,3,0")]) else { panic!("tome") };
    assert_eq!((0..7).map(|layer| constant.count(layer, 100)).sum::<usize>(), 63);
    assert_eq!([0, 1, 2, 3, 4, 5, 6, 7].map(|layer| falling.count(layer, 100)), [18, 15, 12, 9, 6, 3, 0, 0]);
    assert_eq!([0, 1, 2, 9].map(|layer| list.count(layer, 100)), [5, 3, 0, 0]);
}

#[test]
fn a_coreset_is_taken_farthest_first() {
    let x: Vec<f32> = [0.0, 1.0, 10.0, 9.0, 5.0, 5.0].to_vec();
    let matrix = regard_core::rows::Matrix::new(&x, [6, 1], "x").unwrap();
    let kept = |count: &str| {
        let prune = reducer("prune", &[("rule", "coreset"), ("count", count)]);
        prune.reduce(&Tokens { x: Some(matrix), ..Tokens::new(&[0, 6]) }, 0, Par::default()).unwrap().kept().to_vec()
    };
    assert_eq!([kept("1"), kept("2"), kept("3"), kept("4")], [vec![0], vec![0, 2], vec![0, 2, 4], vec![0, 1, 2, 4]]);
    assert_eq!(kept("6"), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn one_token_stays_where_none_reaches_the_threshold() {
    let score = [0.1, 0.3, 0.3, 0.2, 0.5];
    let tokens = Tokens { score: Some(&score), ..Tokens::<f32>::new(&[0, 4, 5]) };
    let kept = |threshold| reducer("prune", &[("threshold", threshold), ("protect", "0")]).reduce(&tokens, 0, Par::default()).unwrap();
    assert_eq!(kept("2").kept(), [1, 4]);
    assert_eq!(kept("0.3").kept(), [1, 2, 4]);
    assert_eq!(kept("0.3").offsets(), [0, 2, 3]);
}

#[test]
fn pruning_asks_for_no_scores_where_everything_stays() {
    let tokens = Tokens::<f32>::new(&[0, 4, 5]);
    for settings in [&[("keep", "1,0.5")][..], &[("threshold", "0,0.5")], &[("rule", "coreset"), ("keep", "1,0.5")]] {
        let prune = reducer("prune", settings);
        assert_eq!([0, 1, 2].map(|layer| prune.acts(layer)), [false, true, true], "{settings:?}");
        assert_eq!(prune.reduce(&tokens, 0, Par::default()).unwrap().kept(), [0, 1, 2, 3, 4]);
        assert!(prune.reduce(&tokens, 1, Par::default()).is_err(), "{settings:?}");
    }
}
