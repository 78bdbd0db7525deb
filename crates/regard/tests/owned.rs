//! What a layer owns for mechanisms whose time grows with length: gates and codebooks, their gradients, averages and records.

mod common;

use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Bool, DType, Device, Tensor, TensorData, activation};
use common::learned::{apart, largest};
use common::{Random, seeded, tensor, values};
use regard::mechanism::{GatedLinear, Hyper, Linear, Local, Mechanism, Vq, VqQk};
use regard::modules::{Codebook, GateProjection};
use regard::{Attention, AttentionLayer, AttentionLayerConfig, LayerInput, Packed, Pass, attention, attention_traced};

const TRAINING: Pass = Pass { training: true, seed: 11, step: 0 };

fn device() -> Device {
    Device::flex().autodiff()
}

fn normal<const D: usize>(random: &mut Random, shape: [usize; D]) -> Tensor<D> {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    tensor(&values, shape, DType::F32, &device())
}

fn near(what: &str, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let (error, most) = (apart(found, expected), largest(expected));
    assert!(most > 0.0 && error <= 1e-5 * most, "{what}: {error:e} of {most:e}");
}

fn layer(mechanism: impl Into<Mechanism>) -> AttentionLayer {
    device().seed(7);
    let mechanism = mechanism.into();
    let config = AttentionLayerConfig::new(16, 4).with_kv_heads(Some(2)).for_mechanism(&mechanism);
    config.init(&device()).unwrap().attention(Attention::causal().mechanism(mechanism))
}

/// Two mechanisms together, with a short window and few codes.
fn joined(name: &str) -> Mechanism {
    let mut mechanism = Mechanism::by_name(name).unwrap();
    for (option, value) in [("local.window", "4"), ("vq.codebook_size", "6"), ("vq.block", "8")] {
        if mechanism.about().options.iter().any(|about| about.name == option) {
            mechanism.set(option, value).unwrap();
        }
    }
    mechanism
}

/// Every mechanism whose time grows with length, with few codes and short blocks, and some of them together.
fn mechanisms() -> [Mechanism; 9] {
    [
        Linear::default().into(),
        GatedLinear::default().into(),
        Vq { codebook_size: 6, block: 8, ..Vq::default() }.into(),
        VqQk { codebook_size_q: 5, codebook_size_k: 6, block: 8, ..VqQk::default() }.into(),
        Hyper { block: 8, samples: 4, min_len: 16, ..Hyper::default() }.into(),
        joined("local+vq"),
        joined("local/linear"),
        joined("local~gated_linear"),
        joined("linear/vq"),
    ]
}

#[test]
fn gates_are_their_formula_and_so_is_the_output() {
    let _alone = seeded(&device(), 1);
    let random = &mut Random::new(1);
    let module = GateProjection::new(10, [4, 6], &device());
    let (x, o) = (normal(random, [2, 9, 10]), normal(random, [2, 4, 9, 6]));
    let low = x.clone().matmul(module.down.weight.val().unsqueeze());
    let logits = low.clone().matmul(module.up.weight.val().unsqueeze()) + module.up.bias.as_ref().unwrap().val().unsqueeze();
    let by_head = |x: Tensor<3>| values(x.reshape([2, 9, 4, 6]).swap_dims(1, 2));
    let gate = |x: f64| -(1.0 + (-x).exp()).ln() / 16.0;
    let expected: Vec<f64> = by_head(logits.clone()).into_iter().map(gate).collect();
    near("gates", &values(module.gates(x.clone()).unwrap()), &expected);

    // The slope of a gate by its logit, by hand.
    let weights = normal(random, [2, 4, 9, 6]);
    let gradients = (module.gates(x.clone()).unwrap() * weights.clone()).sum().backward();
    let slopes = activation::sigmoid(-logits) * weights.swap_dims(1, 2).reshape([2, 9, 24]) * (1.0 / 16.0);
    let expected = low.reshape([18, 16]).transpose().matmul(slopes.clone().reshape([18, 24]));
    near("up", &values(module.up.weight.grad(&gradients).unwrap()), &values(expected));
    let expected = x.clone().reshape([18, 10]).transpose().matmul(slopes.reshape([18, 24]).matmul(module.up.weight.val().transpose()));
    near("down", &values(module.down.weight.grad(&gradients).unwrap()), &values(expected));

    let open = activation::silu(x.clone().matmul(module.gate.weight.val().unsqueeze()));
    let unit = o.clone() / (o.clone().powi_scalar(2).mean_dim(3) + 1e-5).sqrt();
    let expected = unit.swap_dims(1, 2).reshape([2, 9, 24]) * open;
    near("output", &values(module.output(x, o).unwrap()), &values(expected));
}

#[test]
fn every_parameter_of_the_gates_learns() {
    let _alone = seeded(&device(), 2);
    let (layer, x) = (layer(GatedLinear::default()), normal(&mut Random::new(2), [2, 20, 16]));
    let gradients = layer.forward(LayerInput::self_attn(x).pass(TRAINING)).unwrap().powi_scalar(2).sum().backward();
    let gates = layer.gates.unwrap();
    for (name, weight) in [("down", &gates.down.weight), ("up", &gates.up.weight), ("gate", &gates.gate.weight)] {
        assert!(largest(&values(weight.grad(&gradients).unwrap())) > 1e-5, "{name}");
    }
    assert!(largest(&values(gates.norm.gamma.grad(&gradients).unwrap())) > 1e-3);
}

/// Codewords in f64, step after step: sums and counts of the keys of each code, averaged.
#[test]
fn codebooks_follow_their_averages() {
    let _alone = seeded(&device(), 3);
    let random = &mut Random::new(3);
    let mut codebook = Codebook::of_keys([2, 5, 3], &device());
    let how = |step| Attention::full().mechanism(Vq::default()).pass(Pass { step, ..TRAINING });
    let (mut sizes, mut sums, mut rows) = (vec![1.0; 10], Vec::new(), Vec::new());
    for step in 0..4 {
        let [q, k, v] = [4, 2, 2].map(|heads| normal(random, [2, heads, 30, 3]));
        let keys = values(k.clone());
        let how = codebook.attention([&q, &k], how(step)).unwrap();
        let (_, traces) = attention_traced(q.clone(), k.clone(), v, &how).unwrap();
        let statistics = codebook.statistics([&q, &k], &traces, &how).unwrap();
        if step == 0 {
            let drawn: Vec<f64> = statistics.drawn.iter().map(|&x| f64::from(x)).collect();
            assert!(drawn.chunks(3).all(|word| keys.chunks(3).any(|key| key == word)), "codewords start at keys");
            (sums, rows) = (drawn.clone(), drawn);
        }
        let mut counts = [0.0; 10];
        let mut totals = [0.0; 30];
        for (at, key) in keys.chunks(3).enumerate() {
            let head = at / 30 % 2;
            let distance = |code: &usize| rows[(head * 5 + code) * 3..][..3].iter().zip(key).map(|(c, x)| (c - x) * (c - x)).sum::<f64>();
            let code = head * 5 + (0..5).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap();
            counts[code] += 1.0;
            key.iter().enumerate().for_each(|(d, x)| totals[code * 3 + d] += x);
        }
        sizes.iter_mut().zip(counts).for_each(|(size, count)| *size = 0.99 * *size + 0.01 * count);
        sums.iter_mut().zip(totals).for_each(|(sum, total)| *sum = 0.99 * *sum + 0.01 * total);
        rows = sums.iter().enumerate().map(|(at, sum)| sum / f64::max(sizes[at / 3], 0.01)).collect();
        codebook.after_step(&statistics).unwrap();
        near("sizes", &values(codebook.sizes.val()), &sizes);
        near("codewords", &values(codebook.rows.val()), &rows);
    }
}

/// A step of training: the parameters by Adam, the codebooks behind it.
fn step(layer: AttentionLayer, x: &Packed, step: u64) -> AttentionLayer {
    let (y, aside) = layer.forward_packed_training(x, None, Pass { step, ..TRAINING }, 0.0).unwrap();
    let loss = y.into_x().powi_scalar(2).mean() + aside.loss;
    let gradients = GradientsParams::from_grads(loss.backward(), &layer);
    // A new optimiser in every step: what is compared is the layer.
    let mut layer = AdamConfig::new().init().step(0.01, layer, gradients);
    layer.after_step(&aside.codes).unwrap();
    layer
}

fn packed(random: &mut Random) -> Packed {
    Packed::new(normal(random, [61, 16]), &[40, 0, 1, 20]).unwrap()
}

#[test]
fn training_goes_on_from_a_record_to_the_same_bits() {
    let _alone = seeded(&device(), 4);
    let random = &mut Random::new(4);
    let x = packed(random);
    for mechanism in mechanisms() {
        let name = mechanism.about().name;
        let mut through = layer(mechanism.clone());
        through = step(step(through, &x, 0), &x, 1);
        let record = through.clone().into_record().into_bytes().unwrap();
        let mut resumed = layer(mechanism).load_record(burn::store::ModuleRecord::from_bytes(record).unwrap());
        (through, resumed) = (step(step(through, &x, 2), &x, 3), step(step(resumed, &x, 2), &x, 3));
        let run = |layer: &AttentionLayer| values(layer.forward_packed(&x, None, Pass::default()).unwrap().into_x());
        assert_eq!(run(&through), run(&resumed), "{name}");
        for (a, b) in [(&through.codebook, &resumed.codebook), (&through.codebook_q, &resumed.codebook_q)] {
            let all = |codebook: &Codebook| [values(codebook.sizes.val()), values(codebook.sums.val()), values(codebook.rows.val())];
            assert_eq!(a.as_ref().map(all), b.as_ref().map(all), "{name}");
            assert!(a.as_ref().is_none_or(Codebook::is_drawn), "{name}");
        }
    }
}

#[test]
fn every_mechanism_trains_and_infers_inside_a_layer() {
    let _alone = seeded(&device(), 5);
    let random = &mut Random::new(5);
    let x = packed(random);
    for mechanism in mechanisms() {
        let name = mechanism.about().name;
        let fresh = layer(mechanism);
        let before = values(fresh.forward_packed(&x, None, Pass::default()).unwrap().into_x());
        let (y, aside) = fresh.forward_packed_training(&x, None, TRAINING, 0.0).unwrap();
        assert!(values(y.x().clone()).iter().chain(&before).all(|x| x.is_finite()), "{name}");
        assert_eq!(y.offsets(), x.offsets());
        let quantises = name.contains("vq");
        assert_eq!(aside.codes.keys.is_some(), quantises, "{name}");
        assert_eq!(values(aside.loss.clone())[0] > 0.0, quantises, "{name}");
        if let Some(keys) = &aside.codes.keys {
            // Of one kv head of two, where the other is another mechanism's.
            let heads = if name.contains('/') { 1 } else { 2 };
            assert_eq!(keys.counts.iter().sum::<u64>(), heads * 61, "{name}");
        }
        let gradients = (y.into_x().powi_scalar(2).sum() + aside.loss).backward();
        for (part, weight) in [("query", &fresh.query.weight), ("key", &fresh.key.weight), ("value", &fresh.value.weight)] {
            let slopes = values(weight.grad(&gradients).unwrap());
            assert!(slopes.iter().all(|x| x.is_finite()) && largest(&slopes) > 1e-6, "{name}: {part}");
        }
        let trained = step(fresh, &x, 0);
        let after = values(trained.forward_packed(&x, None, Pass::default()).unwrap().into_x());
        assert!(after.iter().all(|x| x.is_finite()) && apart(&before, &after) > 1e-4, "{name}");
    }
}

#[test]
fn shares_of_two_mechanisms_learn_from_half_and_half() {
    let _alone = seeded(&device(), 6);
    let (layer, x) = (layer(joined("local~linear")), normal(&mut Random::new(12), [2, 20, 16]));
    let mix = layer.mix.as_ref().unwrap();
    assert_eq!(values(mix.val()), [0.0; 4]);
    let y = layer.forward(x.clone()).unwrap();
    let alone = |name: &str| {
        let how =
            Attention::causal().mechanism(if name == "local" { Local { window: 4, ..Local::default() }.into() } else { joined(name) });
        layer.clone().attention(how).forward(x.clone()).unwrap()
    };
    near("y", &values(y.clone()), &values((alone("local") + alone("linear")) * 0.5));
    // The slope of a share by the difference of two close ones.
    let loss = |y: Tensor<3>| values(y.powi_scalar(2).sum())[0];
    let slopes = values(mix.grad(&y.powi_scalar(2).sum().backward()).unwrap());
    for h in 0..4 {
        let moved = |by: f32| {
            let mut layer = layer.clone();
            let shares: Vec<f32> = (0..4).map(|at| if at == h { by } else { 0.0 }).collect();
            layer.mix = layer.mix.map(|mix| mix.map(|_| Tensor::from_floats(shares.as_slice(), &device())));
            loss(layer.forward(x.clone()).unwrap())
        };
        let difference = (moved(0.05) - moved(-0.05)) / 0.1;
        assert!((slopes[h] - difference).abs() <= 1e-2 * largest(&slopes), "{h}: {} and {difference}", slopes[h]);
    }
}

/// Padding has no codes, and a padded batch trains its codebook as the same sequences packed do.
#[test]
fn padded_and_packed_batches_say_the_same_of_their_codes() {
    let _alone = seeded(&device(), 7);
    let random = &mut Random::new(6);
    let x = normal(random, [2, 12, 16]);
    let lengths = [12, 7];
    let hidden: Vec<bool> = (0..24).map(|at| at % 12 >= lengths[at / 12]).collect();
    let rows = Tensor::cat((0..2).map(|b| x.clone().narrow(0, b, 1).narrow(1, 0, lengths[b]).squeeze_dim::<2>(0)).collect(), 0);
    let layer = layer(Vq { codebook_size: 6, ..Vq::default() });
    let mask = Tensor::<2, Bool>::from_data(TensorData::new(hidden, [2, 12]), &device());
    let padded = LayerInput::self_attn(x).mask_pad(mask).pass(TRAINING);
    let (_, a) = layer.forward_training(padded, 0.0).unwrap();
    let (_, b) = layer.forward_packed_training(&Packed::new(rows, &lengths).unwrap(), None, TRAINING, 0.0).unwrap();
    let [a, b] = [a, b].map(|aside| aside.codes.keys.unwrap());
    assert_eq!(a.counts.iter().sum::<u64>(), 2 * 19);
    assert_eq!((&a.counts, &a.drawn), (&b.counts, &b.drawn));
}

#[test]
fn a_codebook_of_all_keys_makes_the_layer_exact() {
    let _alone = seeded(&device(), 8);
    let random = &mut Random::new(7);
    let x = normal(random, [1, 24, 16]);
    let mut layer = layer(Vq { codebook_size: 24, block: 8, ..Vq::default() });
    let keys = x.clone().matmul(layer.key.weight.val().unsqueeze()) + layer.key.bias.as_ref().unwrap().val().unsqueeze();
    let keys = keys.reshape([24, 2, 4]).swap_dims(0, 1).detach();
    let codebook = layer.codebook.as_mut().unwrap();
    codebook.rows = codebook.rows.clone().map(|_| keys);
    let found = values(layer.forward(x.clone()).unwrap());
    near("y", &found, &values(layer.attention(Attention::causal()).forward(x).unwrap()));
}

/// `β mean ‖k - C‖²` as the core counts it, and `2 β (k - C) / count`.
#[test]
fn the_commitment_pulls_keys_to_their_codewords() {
    let _alone = seeded(&device(), 9);
    let random = &mut Random::new(8);
    let [q, v] = [4, 2].map(|heads| normal(random, [2, heads, 15, 3]));
    let k = normal(random, [2, 2, 15, 3]).require_grad();
    let codebook = Codebook::of_keys([2, 5, 3], &device());
    let how = codebook.attention([&q, &k], Attention::full().mechanism(Vq::default()).lengths(vec![15, 4])).unwrap();
    let (_, traces) = attention_traced(q.clone(), k.clone(), v, &how).unwrap();
    let loss = codebook.commitment([&q, &k], &traces, &how).unwrap();
    let (rows, keys) = (values(codebook.rows.val()), values(k.clone()));
    let away: Vec<f64> = (0..180)
        .map(|at| match traces[0].values[at / 3] {
            -1 => 0.0,
            code => keys[at] - rows[(at / 45 % 2 * 5 + code as usize) * 3 + at % 3],
        })
        .collect();
    near("loss", &values(loss.clone()), &[away.iter().map(|x| x * x).sum::<f64>() / 38.0]);
    let expected: Vec<f64> = away.iter().map(|x| 2.0 * x / 38.0).collect();
    near("dk", &values(k.grad(&loss.backward()).unwrap()), &expected);
}

/// The loss of a layer whose queries are codewords too is `β (mean ‖q - C^q‖² + mean ‖k - C‖²)`, and both projections feel it.
#[test]
fn the_commitment_of_queries_joins_that_of_keys() {
    let _alone = seeded(&device(), 10);
    let random = &mut Random::new(12);
    let x = normal(random, [1, 14, 16]);
    let layer = |beta: f32| {
        let mechanism = VqQk { codebook_size_q: 5, codebook_size_k: 6, block: 8, beta, ..VqQk::default() };
        layer(mechanism)
    };
    let of = |beta: f32| {
        let layer = layer(beta);
        let (_, aside) = layer.forward_training(LayerInput::self_attn(x.clone()).pass(TRAINING), 0.0).unwrap();
        let grads = aside.loss.backward();
        let slope = |weight: &Tensor<2>| weight.grad(&grads).map_or(0.0, |slope| values(slope).iter().map(|x| x.abs()).sum::<f64>());
        (values(aside.loss)[0], [slope(&layer.query.weight.val()), slope(&layer.key.weight.val())])
    };
    let (loss, slopes) = of(0.5);
    assert!(loss > 0.0 && slopes.iter().all(|slope| *slope > 0.0), "{loss} {slopes:?}");
    near("twice the weight", &[of(1.0).0], &[2.0 * loss]);
}

#[test]
fn statistics_of_two_batches_of_a_step_join() {
    let _alone = seeded(&device(), 11);
    let random = &mut Random::new(9);
    let layer = layer(Vq { codebook_size: 6, ..Vq::default() });
    let [a, b] = [12, 9].map(|n| {
        let x = Packed::new(normal(random, [n, 16]), &[n]).unwrap();
        layer.forward_packed_training(&x, None, TRAINING, 0.0).unwrap().1.codes.keys.unwrap()
    });
    let mut both = a.clone();
    both.join(&b).unwrap();
    assert_eq!(both.counts.iter().sum::<u64>(), 2 * 21);
    assert_eq!(both.drawn, a.drawn);
    assert!(both.sums.iter().zip(&a.sums).zip(&b.sums).all(|((both, a), b)| *both == a + b));
    let other = Codebook::of_keys([2, 7, 4], &device()).after_step(&both).unwrap_err().to_string();
    assert!(other.contains("statistics") && other.contains('7'), "{other}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let _alone = seeded(&device(), 12);
    let refusal = |config: AttentionLayerConfig| config.init(&device()).expect_err("it does not fit").to_string();
    assert_eq!(refusal(AttentionLayerConfig::new(16, 2).with_codebook(Some(0))), "codebook: 0 codewords: expected at least 1");
    let bare = AttentionLayerConfig::new(16, 2).init(&device()).unwrap();
    let x = normal(&mut Random::new(10), [1, 5, 16]);
    for (mechanism, tensor) in [("gated_linear", "gates"), ("vq", "codebook"), ("vq_qk", "codebook")] {
        let how = Attention::causal().mechanism(Mechanism::by_name(mechanism).unwrap());
        let error = bare.clone().attention(how).forward(x.clone()).expect_err("it has none").to_string();
        assert!(error.contains(tensor), "{error}");
    }
    let q = normal(&mut Random::new(11), [1, 2, 5, 4]);
    let how = Attention::causal().mechanism(Vq::default());
    let wide = Codebook::of_keys([2, 6, 8], &device()).attention([&q, &q], how.clone()).expect_err("keys are narrower").to_string();
    assert!(wide.contains("[2, 6, 8]") && wide.contains("[2, 6, 4]"), "{wide}");
    assert!(attention(q.clone(), q.clone(), q, &how).is_err());
}
